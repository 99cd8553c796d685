"""What memorisation is measured by: theorems in float64, by enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisylightning.functional.memorisation import (
    accuracy_ceiling,
    expected_wrong_labels,
    loss_floor,
    memorised_share,
    wrong_label_probability,
)
from noisylightning.transition import symmetric


def drawn(seed: int, classes: int = 4, samples: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """A T whose diagonal is large, and posteriors."""
    generator = torch.Generator().manual_seed(seed)
    T = torch.rand(classes, classes, generator=generator, dtype=torch.float64) + classes * torch.eye(classes)
    p = torch.randn(samples, classes, generator=generator, dtype=torch.float64).mul(3).softmax(dim=1)
    return T / T.sum(dim=1, keepdim=True), p


def every_label(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample with each label."""
    samples, classes = p.shape
    return p.repeat_interleave(classes, dim=0).log(), torch.arange(classes).repeat(samples)


@given(st.integers(0, 10_000))
def test_the_probability_is_bayes_rule(seed):
    T, p = drawn(seed)
    logits, labels = every_label(p)
    found = wrong_label_probability(logits, labels, T).numpy()
    joint = p.numpy()[:, :, None] * T.numpy()  # sample, clean, noisy
    right = np.einsum("nyy->ny", joint) / joint.sum(axis=1)
    np.testing.assert_allclose(found, 1 - right.flatten(), atol=1e-12)


@given(st.integers(0, 10_000))
def test_a_network_that_is_right_in_the_mean_has_memorised_nothing(seed):
    """Over all labels that its posterior and T give to each sample, weighted by their probability."""
    T, p = drawn(seed)
    logits, labels = every_label(p)
    weights = (p @ T).flatten()
    wrong = (weights * wrong_label_probability(logits, labels, T)).sum()
    counts = (p @ T).sum(dim=0)
    assert float(memorised_share(wrong, T, counts)) == pytest.approx(0, abs=1e-9)
    assert float(expected_wrong_labels(T, counts)) == pytest.approx(float((p @ (1 - T.diagonal())).sum()))


def test_labels_by_heart_are_all_memorised_and_half_of_them_half():
    T = symmetric(5, 0.4).double()
    labels = torch.arange(1000) % 5
    counts = labels.bincount()
    sure = 200.0 * torch.eye(5, dtype=torch.float64)
    by_heart = wrong_label_probability(sure[labels], labels, T)
    assert float(memorised_share(by_heart.sum(), T, counts)) == pytest.approx(1)
    clean = torch.where(torch.arange(1000) < 400, (labels + 1) % 5, labels)  # as many wrong labels as T says
    knows = wrong_label_probability(sure[clean], labels, T)
    assert float(memorised_share(knows.sum(), T, counts)) == pytest.approx(0, abs=1e-6)
    half = torch.where((torch.arange(1000) < 200), clean, labels)
    assert float(memorised_share(wrong_label_probability(sure[half], labels, T).sum(), T, counts)) == pytest.approx(0.5)


def test_no_label_is_wrong_by_the_identity():
    assert memorised_share(torch.tensor(0.0), torch.eye(3), torch.ones(3)).isnan()


@given(st.integers(0, 10_000))
def test_nobody_who_knows_the_class_alone_passes_ceiling_and_floor(seed):
    """Whatever it predicts of noisy labels; and who predicts best reaches them."""
    T, p = drawn(seed)
    priors = p.mean(dim=0)
    counts = priors @ T
    guess = drawn(seed + 1)[0]  # of a noisy label for each class
    accuracy = (priors[:, None] * T)[torch.arange(4), guess.argmax(dim=1)].sum()
    loss = -(priors[:, None] * T * guess.log()).sum()
    assert float(accuracy_ceiling(T, counts)) >= float(accuracy) - 1e-9
    assert float(loss_floor(T, counts)) <= float(loss) + 1e-9
    best = (priors[:, None] * T)[torch.arange(4), T.argmax(dim=1)].sum()
    assert float(accuracy_ceiling(T, counts)) == pytest.approx(float(best))
    assert float(loss_floor(T, counts)) == pytest.approx(float(-(priors[:, None] * T * T.log()).sum()))


def test_zeros_in_t_cost_nothing():
    T = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    assert float(loss_floor(T, torch.tensor([1.0, 0.0]))) == pytest.approx(0)
    impossible = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert wrong_label_probability(torch.zeros(1, 2), torch.tensor([1]), impossible).tolist() == [1.0]
