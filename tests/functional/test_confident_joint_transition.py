"""The confident joint against cleanlab, and where the two differ; and a sparse T-hat against a dense one."""

import numpy as np
import pytest
import torch
from cleanlab.count import compute_confident_joint, estimate_latent
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional.confident_joint import (
    check_self_confidence,
    confident_classes,
    confident_counts,
    confident_joint_transition,
    confident_thresholds,
    count_pairs,
    joint_transition,
    self_confidence,
    sparse_joint_transition,
)
from noisylightning.transition import relative_l1_error, symmetric


def example(num: int = 3000, classes: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(num, classes, generator=generator)).softmax(dim=1)
    return probs, torch.multinomial(probs, 1, generator=generator).flatten()


def ours(probs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    class_counts = labels.bincount(minlength=probs.shape[1])
    thresholds = confident_thresholds(self_confidence(probs, labels), class_counts)
    return confident_counts(probs, labels, thresholds), class_counts


def without_disputed(probs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Leave out the samples with several confident classes of which none is the most probable of all."""
    while True:
        bounds = torch.stack([probs[labels == j, j].mean() for j in range(probs.shape[1])])
        sure = probs >= bounds - 1e-6
        disputed = (sure.sum(dim=1) > 1) & ~sure.gather(1, probs.argmax(dim=1, keepdim=True)).squeeze(1)
        near = ((probs - bounds).abs() < 2e-6).any(dim=1)
        if not (disputed | near).any():
            return probs, labels
        probs, labels = probs[~(disputed | near)], labels[~(disputed | near)]


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (6, 1), (17, 2)])
def test_counts_joint_and_transition_are_those_of_cleanlab(classes, seed, monkeypatch):
    probs, labels = without_disputed(*example(4000, classes, seed))
    counts, class_counts = ours(probs, labels)
    arguments = labels.numpy(), probs.double().numpy()
    theirs = compute_confident_joint(*arguments, calibrate=False)
    assert counts.numpy().min(where=np.eye(classes, dtype=bool), initial=9) > 0  # so that cleanlab adds nothing
    np.testing.assert_array_equal(counts.numpy(), theirs)
    joint = (counts * (class_counts / counts.sum(dim=1).double())[:, None]).numpy()
    monkeypatch.setattr("cleanlab.count.round_preserving_row_totals", lambda joint: joint)
    np.testing.assert_allclose(joint, compute_confident_joint(*arguments), rtol=1e-13)
    _, noise_matrix, _ = estimate_latent(joint, labels.numpy())
    np.testing.assert_allclose(joint_transition(counts, class_counts).numpy(), noise_matrix.T, rtol=1e-12)
    np.testing.assert_allclose(confident_joint_transition(probs, labels).numpy(), noise_matrix.T, atol=1e-6)


def test_of_several_confident_classes_the_most_probable_is_taken_as_in_the_paper():
    """cleanlab takes the most probable class of all, though it is not confident of that."""
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.32, 0.28], [0.1, 0.3, 0.6], [0.3, 0.55, 0.15]])
    labels, thresholds = torch.tensor([0, 1, 2, 1]), torch.tensor([0.8, 0.3, 0.2])
    assert confident_classes(probs, thresholds).tolist() == [0, 1, 2, 1]
    theirs = compute_confident_joint(labels.numpy(), probs.numpy(), thresholds=thresholds.numpy(), calibrate=False)
    assert theirs[1].tolist() == [1, 1, 0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.integers(2, 50), double=st.booleans())
def test_counts_agree_with_a_loop_in_whole_numbers(seed, levels, double):
    """And every label has a sample that is confidently of some class, whatever the ties."""
    probs, labels = example(60, 4, seed)
    labels[:4] = torch.arange(4)
    probs = (probs * levels).round() + 1
    probs = (probs / probs.sum(dim=1, keepdim=True)).to(torch.float64 if double else torch.float32)
    counts, _ = ours(probs, labels)
    expected = np.zeros((4, 4), dtype=int)
    bounds = [sum(float(probs[n, j]) for n in range(60) if labels[n] == j) / int((labels == j).sum()) for j in range(4)]
    bounds = torch.tensor([bound - 2**-36 for bound in bounds], dtype=torch.float64).to(probs.dtype).tolist()
    for row, label in zip(probs.double().tolist(), labels.tolist(), strict=True):
        sure = [j for j in range(4) if row[j] >= bounds[j]]
        if sure:
            expected[label, max(sure, key=lambda j: row[j])] += 1
    np.testing.assert_array_equal(counts.numpy(), expected)
    assert (counts.sum(dim=1) > 0).all()


def test_it_converges_where_the_posteriors_are_exact():
    """Each class has anchors, of which the network is as sure as T allows."""
    true, generator = symmetric(4, 0.4, dtype=torch.float64), torch.Generator().manual_seed(0)
    errors = []
    for num in (500, 5000, 50_000):
        clean = torch.arange(num) % 4
        labels = torch.multinomial(true[clean], 1, generator=generator).flatten()
        errors.append(float(relative_l1_error(confident_joint_transition(true[clean], labels), true.float())))
    assert errors[2] < 0.02
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("max_entries", [6, 3, 1])
def test_a_sparse_transition_is_the_dense_one_cut(max_entries):
    probs, labels = example(2000)
    counts, class_counts = ours(probs, labels)
    dense = confident_joint_transition(probs, labels).double()
    keys = counts.flatten().nonzero()
    pairs = count_pairs(torch.cat([keys, counts.flatten()[keys]], dim=1))
    found, cut = sparse_joint_transition(pairs, class_counts, max_entries)
    expected = torch.zeros_like(dense)
    for i, row in enumerate(dense):
        kept = sorted(range(6), key=lambda j: (j != i, -row[j], j))[:max_entries]
        expected[i, kept] = row[kept]
    torch.testing.assert_close(cut, 1 - expected.sum(dim=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.to_dense(), (expected / expected.sum(dim=1, keepdim=True)).float())
    assert int(found.indices()[0].bincount().max()) <= max_entries


def test_a_label_that_no_class_would_give_is_named():
    pairs = torch.tensor([[0, 5], [2, 1], [3, 5], [4, 5], [6, 2], [7, 3]])  # nothing of class 2 is labelled 2
    with pytest.raises(ValueError, match="With 1 entries in a row of T no class would give the label 2"):
        sparse_joint_transition(pairs, torch.tensor([5, 10, 5]), 1)


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([[0.9, 0.1], [0.8, 0.2]], [0, 0], "no example among 2 carries the noisy label 1"),
        ([[0.9, 0.1], [0.9, 0.1]], [0, 1], "no sample is confidently of class 1"),
        ([[1.0, 0.0], [1.0, 0.0]], [0, 1], "the network gives class 1 no probability on the samples"),
        ([[0.9, 0.2], [0.8, 0.2]], [0, 1], "pass softmax"),
        ([[0.9, 0.1], [0.8, 0.2]], [0, 2], "labels between 0 and 1, got 2"),
    ],
)
def test_what_cannot_be_estimated_is_refused(probs, labels, message):
    with pytest.raises(ValueError, match=message):
        confident_joint_transition(torch.tensor(probs), torch.tensor(labels))


def test_no_table_is_refused():
    with pytest.raises(ValueError, match="must hold a table"):
        confident_joint_transition(torch.ones(3), torch.tensor([0, 1, 0]))


def test_a_class_without_a_sample_has_a_threshold_that_nobody_reaches():
    thresholds = confident_thresholds(torch.tensor([0, 2**36]), torch.tensor([0, 2]))
    assert confident_classes(torch.tensor([[0.9, 0.1], [0.5, 0.5]]), thresholds).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="carries the noisy label 0"):
        check_self_confidence(torch.tensor([0, 2**36]), torch.tensor([0, 2]))
