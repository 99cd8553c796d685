"""The step of expectation maximisation as a theorem, in float64."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from noisylightning.functional.expectation_maximization import expected_counts, log_likelihood, maximize
from noisylightning.transition import SparseTransition

CLASSES = 3


def drawn(seed: int, num: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels of every class, and a T without zeros."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (num,), generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    transition = torch.rand(CLASSES, CLASSES, generator=generator, dtype=torch.float64) + 0.1
    return logits, labels, transition / transition.sum(dim=1, keepdim=True)


def test_where_the_classes_are_known_it_counts():
    _, labels, transition = drawn(0)
    clean = torch.arange(len(labels)) % CLASSES
    logits = torch.full((len(labels), CLASSES), -torch.inf).double()
    logits[torch.arange(len(labels)), clean] = 0
    counted = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    counted.index_put_((clean, labels), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    counts = expected_counts(logits, labels, transition)
    assert torch.equal(counts, counted[None])
    assert torch.equal(maximize(counts)[0], counted / counted.sum(dim=1, keepdim=True))


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_it_is_bayes_rule(seed):
    logits, labels, transition = (tensor.numpy() for tensor in drawn(seed))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((CLASSES, CLASSES))
    for row, label in zip(p, labels, strict=True):
        joint = row * transition[:, label]
        expected[:, label] += joint / joint.sum()
    counts = expected_counts(*drawn(seed))[0]
    np.testing.assert_allclose(counts, expected, atol=1e-8)
    found = maximize(counts)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-8)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_likelihood_of_the_labels_never_falls(seed):
    """Dempster, Laird and Rubin (1977), theorem 1; up to the rounding of the counts."""
    logits, labels, transition = drawn(seed)
    before = float(log_likelihood(logits, labels, transition).sum())
    for _ in range(10):
        transition = maximize(expected_counts(logits, labels, transition))[0]
        after = float(log_likelihood(logits, labels, transition).sum())
        assert after >= before - 1e-8
        before = after


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_true_t_is_a_fixed_point_in_expectation(seed):
    """Each sample has every label, weighted by its probability (p T)_y."""
    logits, _, transition = drawn(seed, num=20)
    total = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    for row, posterior in zip(logits, logits.softmax(dim=1), strict=True):
        for label, share in enumerate(posterior @ transition):
            total += share * expected_counts(row[None], torch.tensor([label]), transition)[0]
    torch.testing.assert_close(maximize(total), transition, atol=1e-9, rtol=0)


def test_order_and_batches_change_no_bit():
    logits, labels, transition = drawn(1, num=997)
    index = torch.arange(len(labels))
    whole = expected_counts(logits, labels, transition, index, replicates=3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    shuffled = expected_counts(logits[order], labels[order], transition, index[order], replicates=3)
    assert torch.equal(shuffled, whole)
    parts = [
        expected_counts(logits[some], labels[some], transition, some, replicates=3)
        for some in order.split((1, 96, 900))
    ]
    assert torch.equal(sum(parts), whole)


def test_a_sparse_t_is_taken():
    logits, labels, transition = drawn(3)
    sparse = SparseTransition(transition.to_sparse())
    torch.testing.assert_close(expected_counts(logits, labels, sparse), expected_counts(logits, labels, transition))


def test_standard_errors_are_those_of_shares():
    """Where the classes are known T-hat is a share of each row, and its standard error sqrt(t (1 - t) / n)."""
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    clean = torch.arange(4000) % 2
    noisy = torch.multinomial(transition[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
    logits = 1e4 * torch.eye(2)[clean]
    found = maximize(expected_counts(logits, noisy, transition, torch.arange(4000), replicates=400))
    expected = (found[0] * (1 - found[0]) / 2000).sqrt()
    torch.testing.assert_close(found[1:].std(dim=0), expected, atol=0, rtol=0.15)


@pytest.mark.parametrize(
    ("logits", "labels", "transition", "message"),
    [
        (torch.zeros(2, 2), [0, 1], [[1.0, 0.0], [1.0, 0.0]], "A sample is labelled 1, which no class .* by T: start"),
        (torch.tensor([[0.0, -torch.inf]]), [1], [[1.0, 0.0], [0.5, 0.5]], "A sample is labelled 1, which no class"),
        (torch.tensor([[0.0, torch.nan]]), [0], [[0.8, 0.2], [0.3, 0.7]], "NaN or infinite predictions"),
        (torch.zeros(1, 2), [2], [[0.8, 0.2], [0.3, 0.7]], "labels between 0 and 1, got 2"),
        (torch.zeros(2, 2), [0], [[0.8, 0.2], [0.3, 0.7]], "2 predictions and noisy labels of shape"),
        (torch.zeros(1, 3), [0], [[0.8, 0.2], [0.3, 0.7]], "3"),
    ],
)
def test_what_cannot_be_counted_is_refused(logits, labels, transition, message):
    with pytest.raises(ValueError, match=message):
        expected_counts(logits, torch.tensor(labels), torch.tensor(transition))


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (3, 2, 2)])
def test_an_empty_class_is_named(shape):
    counts = torch.ones(shape)
    counts.view(-1, 2, 2)[-1, 1] = 0
    with pytest.raises(ValueError, match=r"no sample for one of class 1: train it for longer"):
        maximize(counts)
