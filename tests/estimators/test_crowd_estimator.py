"""CrowdEstimator: the function, batch by batch, and its standard error."""

import pytest
import torch

from noisylightning import CrowdEstimator
from noisylightning.functional import dawid_skene
from noisylightning.predictions import Predictions


def answers_of(num=150, seed=0, annotators=5):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.arange(num) % 3
    shape = (num, annotators)
    wrong = torch.randint(3, shape, generator=generator)
    answers = torch.where(torch.rand(shape, generator=generator) < 0.7, clean[:, None], wrong)
    answers[:, 1:] = answers[:, 1:].masked_fill(torch.rand((num, annotators - 1), generator=generator) < 0.3, -1)
    return answers


def record(answers):
    return Predictions(torch.zeros(len(answers), 3), answers)


def fed(predictions, size=40, **options):
    estimator = CrowdEstimator(3, **options)
    for batch in predictions.split(size):
        estimator.update(batch)
    return estimator


def test_neither_order_nor_batches_nor_processes_change_a_bit():
    answers = answers_of()
    whole = record(answers)
    expected = fed(whole, replicates=4)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    one, two = fed(whole.select(order[:100]), 7, replicates=4), fed(whole.select(order[100:]), 50, replicates=4)
    one.answers, one.places = one.answers + two.answers, one.places + two.places  # as processes do
    one.class_counts += two.class_counts
    assert torch.equal(one.compute(), expected.compute())
    assert torch.equal(one.compute(), dawid_skene(answers, 3).transition.float())
    assert torch.equal(one.crowd.soft_labels, dawid_skene(answers, 3).soft_labels)
    assert torch.equal(one.standard_error(), expected.standard_error())
    assert one.class_counts.tolist() == answers[answers >= 0].bincount().tolist()


def test_the_standard_error_is_that_of_items_drawn_anew():
    drawn = torch.stack([fed(record(answers_of(seed=seed))).compute() for seed in range(60)])
    error = fed(record(answers_of()), replicates=60).standard_error()
    assert 0.6 < float(error.mean() / drawn.std(dim=0).mean()) < 1.6


def test_one_label_a_sample_is_refused():
    with pytest.raises(ValueError, match=r"reads the labels of several annotators, got one a sample"):
        CrowdEstimator(3).update(Predictions(torch.zeros(2, 3), torch.tensor([0, 1])))


def test_samples_without_a_place_are_refused():
    unplaced = Predictions(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long), index=torch.full((2,), -1))
    with pytest.raises(ValueError, match="needs the place of each sample"):
        CrowdEstimator(3).update(unplaced)


def test_batches_of_other_annotators_are_refused():
    estimator = fed(record(answers_of()))
    with pytest.raises(ValueError, match="answers of 2 annotators, the one before of 5"):
        estimator.update(record(answers_of(annotators=2)))


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_example_at_all_is_named():
    with pytest.raises(ValueError, match="the loader is empty"):
        CrowdEstimator(3).compute()
