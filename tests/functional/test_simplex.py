"""Corners of the posteriors' simplex: exact where there are corners, whatever the order, the noise small."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional.simplex import simplex_transition
from noisylightning.transition import from_flips, pairflip, relative_l1_error, symmetric

MATRICES = [
    symmetric(5, 0.5, dtype=torch.float64),
    pairflip(5, 0.45, dtype=torch.float64),
    from_flips(5, {0: 1, 2: 3}, 0.4, dtype=torch.float64),
]


def mixed(num: int, classes: int, seed: int) -> torch.Tensor:
    scores = torch.randn(num, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scores.softmax(dim=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), true=st.sampled_from(MATRICES))
def test_it_is_exact_where_every_class_has_sure_samples(seed, true):
    clean = torch.cat([torch.eye(5, dtype=torch.float64).repeat(30, 1), mixed(100, 5, seed)])
    clean = clean[torch.randperm(len(clean), generator=torch.Generator().manual_seed(seed))]
    found = simplex_transition(clean @ true, depth=0.2)
    torch.testing.assert_close(found, true, atol=1e-10, rtol=0)


def test_a_rare_class_has_a_corner_of_its_own():
    true = MATRICES[1]
    sizes = torch.tensor([400, 400, 400, 400, 40])
    clean = torch.eye(5, dtype=torch.float64)[torch.arange(5).repeat_interleave(sizes)]
    torch.testing.assert_close(simplex_transition(clean @ true), true, atol=1e-10, rtol=0)


@pytest.mark.parametrize("true", MATRICES)
def test_noise_on_the_posteriors_averages_out(true):
    """The farthest posterior is the noisiest one; the mean of the far ones is not."""
    generator = torch.Generator().manual_seed(0)
    sure = torch.eye(5, dtype=torch.float64)[torch.arange(5).repeat(400)]
    scores = (sure @ true).clamp_min(1e-3).log()
    noisy = (scores + 0.2 * torch.randn(scores.shape, dtype=torch.float64, generator=generator)).softmax(dim=1)
    assert relative_l1_error(simplex_transition(noisy, depth=0.8), true) < 0.1
    assert relative_l1_error(simplex_transition(noisy, depth=0.8), true) < 0.5 * relative_l1_error(
        simplex_transition(noisy, depth=0.001, seek=0.001), true
    )


def test_weights_are_repeated_samples():
    probs = mixed(80, 3, 0) @ symmetric(3, 0.2, dtype=torch.float64)
    weights = torch.arange(80) % 3
    torch.testing.assert_close(
        simplex_transition(probs, weights=weights), simplex_transition(probs.repeat_interleave(weights, dim=0))
    )


@pytest.mark.parametrize(
    ("probs", "arguments", "message"),
    [
        (torch.full((10, 3), 1 / 3), {}, "span fewer than 3 dimensions"),
        (torch.eye(3)[:2], {}, "2 predictions span no simplex of 3 corners"),
        (torch.eye(3), {"depth": 0.0}, "depth must be in"),
        (torch.eye(3), {"seek": 2.0}, "seek must be in"),
        (torch.ones(4, 3), {}, "the sum 3: pass softmax"),
    ],
)
def test_what_has_no_corners_is_refused(probs, arguments, message):
    with pytest.raises(ValueError, match=message):
        simplex_transition(probs, **arguments)
