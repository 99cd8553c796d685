"""ConfidentJointEstimator: one pass or two, any order, several processes, and its standard errors."""

import pytest
import torch
from torchmetrics.utilities import dim_zero_cat

from noisylightning.estimators import ConfidentJointEstimator
from noisylightning.functional import confident_joint_transition
from noisylightning.predictions import Predictions


def example(num: int = 2000, classes: int = 5, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    return Predictions(logits, labels, held_out=torch.rand(num, generator=generator) < 0.6)


def fed(predictions: Predictions, twice: bool = False, size: int = 137, **arguments) -> ConfidentJointEstimator:
    estimator = ConfidentJointEstimator(predictions.num_classes, **arguments)
    if twice:
        for batch in predictions.split(size):
            estimator.survey(batch)
        estimator.end_survey()
    for batch in predictions.split(size):
        estimator.update(batch)
    return estimator


def merged(first: ConfidentJointEstimator, second: ConfidentJointEstimator) -> ConfidentJointEstimator:
    """What the first would be after a sync of two processes."""
    for name, reduction in first._reductions.items():
        mine, other = getattr(first, name), getattr(second, name)
        if isinstance(mine, list):
            setattr(first, name, [dim_zero_cat([*mine, *other])] if mine else [])
        else:
            setattr(first, name, reduction(torch.stack([mine, other])))
    return first


def test_only_held_out_samples_count():
    predictions = example()
    held_out = predictions.select(predictions.held_out)
    expected = confident_joint_transition(held_out.probs, held_out.noisy_labels)
    assert torch.equal(fed(predictions).compute(), expected)


@pytest.mark.parametrize("twice", [False, True])
def test_neither_passes_nor_order_nor_batches_nor_processes_change_a_bit(twice):
    predictions = example()
    one = fed(predictions, size=2000, replicates=7)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    other = fed(predictions.select(order), twice, size=61, replicates=7)
    assert torch.equal(other.compute(), one.compute())
    assert torch.equal(other.standard_error(), one.standard_error())


def test_two_processes_give_what_one_does():
    predictions = example()
    halves = [predictions.select(slice(k, None, 2)) for k in range(2)]
    assert torch.equal(merged(*map(fed, halves)).compute(), fed(predictions).compute())
    first, second = ConfidentJointEstimator(5), ConfidentJointEstimator(5)
    first.survey(halves[0])
    second.survey(halves[1])
    whole = merged(first, second)
    whole.end_survey()
    for batch in predictions.split(300):
        whole.update(batch)
    assert torch.equal(whole.compute(), fed(predictions).compute())


def test_two_passes_keep_counts_alone():
    estimator = fed(example(), twice=True)
    kept = sum(torch.as_tensor(value).numel() for value in estimator.metric_state.values())
    assert kept == 25 + 3 * 5
    estimator.reset()
    assert estimator.thresholds is None


def test_it_wants_two_passes_where_there_is_much_to_keep():
    assert not ConfidentJointEstimator(10).wants_survey(60_000)
    assert ConfidentJointEstimator(1000).wants_survey(1_000_000)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("max_entries", [2, 5])
def test_a_sparse_estimate_is_the_dense_one_cut(twice, max_entries, monkeypatch):
    monkeypatch.setattr("noisylightning.estimators.confident_joint._MERGE_AT", 8)
    predictions = example()
    dense = fed(predictions).compute()
    estimator = fed(predictions, twice, max_entries=max_entries)
    found = estimator.compute()
    assert found.layout == torch.sparse_coo
    kept = found.to_dense() > 0
    assert (kept.sum(dim=1) <= max_entries).all()
    expected = dense * kept
    torch.testing.assert_close(found.to_dense(), expected / expected.sum(dim=1, keepdim=True))
    torch.testing.assert_close(estimator.mass_cut.float(), 1 - expected.sum(dim=1), atol=1e-6, rtol=0)
    backwards = fed(predictions.select(torch.arange(1999, -1, -1)), max_entries=max_entries).compute()
    assert torch.equal(backwards.to_dense(), found.to_dense())


def test_standard_errors_are_those_of_samples_drawn_anew():
    """Over independent samples of the same size."""
    estimates = torch.stack([fed(example(1000, 3, seed)).compute() for seed in range(150)])
    told = torch.stack([fed(example(1000, 3, seed), replicates=50).standard_error() for seed in range(5)]).mean(dim=0)
    ratio = told / estimates.std(dim=0)
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    assert fed(example()).standard_error() is None


def test_a_class_without_held_out_samples_is_named():
    predictions = example()
    held_out = predictions.held_out & (predictions.noisy_labels != 3)
    missing = Predictions(predictions.logits, predictions.noisy_labels, held_out=held_out)
    with pytest.raises(ValueError, match=r"held-out samples none carries the label 3; hold out more samples"):
        fed(missing).compute()
    with pytest.raises(ValueError, match="none carries the label 3"):
        fed(missing, twice=True).compute()  # the first pass, which may be a rehearsal, does not mind


def test_a_class_so_rare_that_a_replicate_misses_it_is_named():
    rare = Predictions(
        torch.tensor([[2.0, 0.0]] * 20 + [[0.0, 2.0]]),
        torch.tensor([0] * 20 + [1]),
        held_out=torch.ones(21, dtype=torch.bool),
    )
    with pytest.raises(ValueError, match="class 1 has so few held-out samples that a bootstrap replicate has none"):
        fed(rare, replicates=50).standard_error()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_entries": 0}, "max_entries must be at least 1"),
        ({"max_entries": 2, "replicates": 9}, "no standard errors"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfidentJointEstimator(3, **arguments)
