"""The mixture of labels over a hidden class, against expectation maximisation tuple by tuple, and its limits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import label_mixture as module
from noisylightning.functional.label_mixture import LabelMixture, start_of


def some_tables(num: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(num, classes, classes, dtype=torch.float64, generator=generator)
    tables = 0.6 * torch.eye(classes, dtype=torch.float64) + 0.4 * spread / spread.sum(dim=2, keepdim=True)
    prior = torch.rand(classes, dtype=torch.float64, generator=generator) + 0.5
    return prior / prior.sum(), tables


def one_step(prior, tables, annotators, tuples, weights):
    """Expectation maximisation as it is written in the books, tuple by tuple."""
    classes = len(prior)
    new_prior, counts, total = np.zeros(classes), np.zeros_like(tables), 0.0
    for labels, weight in zip(tuples, weights, strict=True):
        joint = np.array([prior[i] * np.prod([tables[a][i, y] for a, y in zip(annotators, labels, strict=True)])
                          for i in range(classes)])  # fmt: skip
        total += weight * np.log(joint.sum())
        share = weight * joint / joint.sum()
        new_prior += share
        for a, y in zip(annotators, labels, strict=True):
            counts[a][:, y] += share
    return new_prior, counts / counts.sum(axis=2, keepdims=True), total


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), block=st.sampled_from([1, 7, 2**22]))
def test_a_step_is_that_of_the_books(seed, block):
    annotators = (0, 0, 1)
    prior, tables = some_tables(2, 3, seed)
    generator = torch.Generator().manual_seed(seed)
    tuples = torch.randint(0, 3, (12, 3), generator=generator)
    weights = torch.rand(12, dtype=torch.float64, generator=generator)
    weights /= weights.sum()
    expected = one_step(prior.numpy(), tables.numpy(), annotators, tuples.tolist(), weights.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = LabelMixture(prior, tables, annotators)._step(tuples, weights)
    np.testing.assert_allclose(found.prior, expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.tables, expected[1], rtol=1e-12)
    assert found.log_likelihood == pytest.approx(expected[2], rel=1e-12)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_exact_distribution_gives_the_mixture_back(seed):
    """Three labels a class identify it (Kruskal 1977)."""
    prior, tables = some_tables(1, 4, seed)
    tuples = torch.cartesian_prod(*3 * [torch.arange(4)])
    weights = torch.einsum("i,ia,ib,ic->abc", prior, *3 * [tables[0]]).flatten()
    found = start_of(4, (0, 0, 0), seed).fit(tuples, weights, tolerance=1e-10)
    torch.testing.assert_close(found.tables, tables, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.prior, prior, atol=1e-5, rtol=0)


def test_a_fit_is_never_less_likely_than_plain_steps():
    prior, tables = some_tables(1, 3, 0)
    tuples = torch.cartesian_prod(*3 * [torch.arange(3)])
    weights = torch.einsum("i,ia,ib,ic->abc", prior, *3 * [tables[0]]).flatten()
    plain = start_of(3, (0, 0, 0))
    seen = []
    for _ in range(60):
        plain = plain._step(tuples, weights)
        seen.append(plain.log_likelihood)
    assert all(later >= before - 1e-12 for before, later in pairwise(seen))
    assert start_of(3, (0, 0, 0)).fit(tuples, weights).log_likelihood >= seen[-1] - 1e-9


def test_a_fit_that_does_not_converge_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_STEPS", 6)
    tuples = torch.cartesian_prod(*3 * [torch.arange(3)])
    with pytest.raises(ValueError, match=r"did not converge in 6 steps \(the last changed a probability by"):
        start_of(3, (0, 0, 0), 1).fit(tuples, torch.arange(27.0), tolerance=0)
