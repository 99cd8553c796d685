"""Projection onto the simplex, by what makes a point the nearest one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.transition import pairflip
from noisylightning.transition.simplex import project_to_simplex

finite = st.floats(-5, 5, allow_nan=False, width=32)


@settings(deadline=None)
@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(finite, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_it_is_the_nearest_distribution(rows):
    rows = torch.tensor(rows, dtype=torch.float64)
    nearest = project_to_simplex(rows)
    assert nearest.min() >= 0
    torch.testing.assert_close(nearest.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))
    # No distribution lies in the direction of the row: it is enough to look at the corners (Hilbert's theorem).
    corners = torch.eye(rows.shape[1], dtype=torch.float64)
    towards = ((rows - nearest)[:, None] * (corners - nearest[:, None])).sum(dim=2)
    assert towards.max() <= 1e-12


def test_distributions_stay_and_inner_points_have_a_gradient():
    assert torch.allclose(project_to_simplex(pairflip(5, 0.3)), pairflip(5, 0.3), atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(project_to_simplex, rows)
