"""Several estimators asked at once: who is left out, and who is followed."""

import logging

import pytest
import torch
from torch import nn

from noisylightning import (
    AnchorEstimator,
    ClusterabilityEstimator,
    ConfidentJointEstimator,
    ConsensusEstimator,
    SimplexEstimator,
)
from noisylightning.errors import BadValue
from noisylightning.estimators import TransitionEstimator
from noisylightning.predictions import Predictions
from noisylightning.transition import relative_l1_error, symmetric

TRUE = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.1, 0.0, 0.9]])


def said(rate):
    class Said(TransitionEstimator):
        def _accumulate(self, batch):
            pass

        def compute(self):
            return symmetric(3, rate)

    return Said


class Failing(AnchorEstimator):
    def compute(self):
        raise BadValue("It is too late.")


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    clean = torch.arange(1500) % 3
    generator = torch.Generator().manual_seed(0)
    noisy = torch.multinomial(TRUE[clean], 1, generator=generator).flatten()
    features = torch.randn(1500, 3, generator=generator) + 6 * torch.eye(3)[clean]
    return Predictions(TRUE[clean].log(), noisy, held_out=torch.ones(1500, dtype=torch.bool), features=features)


def without(predictions: Predictions, *names: str) -> Predictions:
    return Predictions(**{name: value for name, value in vars(predictions).items() if name not in names})


def ask(estimator, predictions, size=400):
    for batch in predictions.split(size):
        estimator.update(batch)
    return estimator.compute()


def test_it_is_near_the_truth(predictions):
    assert relative_l1_error(ask(ConsensusEstimator(3), predictions), TRUE) < 0.1


def test_what_can_see_the_samples_twice_does_and_says_the_same(predictions):
    starts = [AnchorEstimator, ConfidentJointEstimator, SimplexEstimator]
    twice = ConsensusEstimator(3, starts=starts)
    assert twice.wants_survey(10**9)
    assert not twice.wants_survey(10**4)
    assert not ConsensusEstimator(3, starts=[SimplexEstimator]).wants_survey(10**9)
    for batch in predictions.split(400):
        twice.survey(batch)
    twice.end_survey()
    assert torch.equal(ask(twice, predictions), ask(ConsensusEstimator(3, starts=starts), predictions))
    anchor, joint, _ = twice.starts
    assert not joint.probs  # what it has seen, it has counted
    assert sum(map(len, anchor.probs)) < len(predictions)


def test_it_takes_the_one_that_the_others_are_nearest_to(predictions):
    estimator = ConsensusEstimator(3, starts=[said(0.0), said(0.3), said(0.4)])
    assert torch.equal(ask(estimator, predictions), symmetric(3, 0.3))


def test_rows_are_named(predictions):
    class Permuted(said(0.2)):
        def compute(self):
            return super().compute()[[2, 0, 1]]

    assert torch.equal(ask(ConsensusEstimator(3, starts=[Permuted]), predictions), symmetric(3, 0.2))


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (("features",), "ClusterabilityEstimator is left out: ClusterabilityEstimator needs features"),
        (("held_out",), "ConfidentJointEstimator is left out: "),
    ],
)
def test_who_lacks_something_is_left_out_with_a_line(predictions, caplog, missing, named):
    caplog.set_level(logging.INFO)
    found = ask(ConsensusEstimator(3), without(predictions, *missing))
    assert relative_l1_error(found, TRUE) < 0.2
    lines = [line for line in caplog.messages if "left out" in line]
    assert len(lines) == 1
    assert lines[0].startswith(named)


def test_who_fails_late_is_left_out_too(predictions, caplog):
    caplog.set_level(logging.INFO)
    assert torch.equal(ask(ConsensusEstimator(3, starts=[Failing, said(0.1)]), predictions), symmetric(3, 0.1))
    assert "Failing is left out: It is too late." in caplog.messages


def test_where_all_fail_one_sentence_says_why_each_did(predictions):
    estimator = ConsensusEstimator(3, starts=[Failing, ClusterabilityEstimator])
    with pytest.raises(
        ValueError,
        match=r"^No estimator found a T \(Failing: It is too late; ClusterabilityEstimator: .* needs features, .*\):"
        r" choose others \(estimator\)\.$",
    ):
        ask(estimator, without(predictions, "features"))


def test_nobody_to_ask_is_refused():
    with pytest.raises(ValueError, match="asks several estimators, but starts is empty"):
        ConsensusEstimator(3, starts=[])


def test_batches_and_their_order_change_no_bit(predictions):
    whole = ask(ConsensusEstimator(3), predictions, size=1500)
    assert torch.equal(ask(ConsensusEstimator(3), predictions, size=64), whole)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(1))
    shuffled = Predictions(
        **{name: value[order] for name, value in vars(predictions).items() if isinstance(value, torch.Tensor)}
    )
    assert torch.equal(ask(ConsensusEstimator(3), shuffled, size=250), whole)


def test_reset_forgets_who_was_left_out(predictions):
    estimator = ConsensusEstimator(3, starts=[ClusterabilityEstimator])
    with pytest.raises(ValueError, match="No estimator"):
        ask(estimator, without(predictions, "features"))
    estimator.reset()
    fresh = ask(ConsensusEstimator(3, starts=[ClusterabilityEstimator]), predictions)
    assert torch.equal(ask(estimator, predictions), fresh)
    assert int(estimator.class_counts.sum()) == 1500


def test_a_value_of_one_batch_is_refused_since_it_would_forget_the_others(predictions):
    with pytest.raises(ValueError, match="call update with each, then compute"):
        ConsensusEstimator(3)(predictions)


def test_its_estimators_move_with_it():
    estimator = ConsensusEstimator(3, starts=[AnchorEstimator, ConfidentJointEstimator])
    assert isinstance(estimator, nn.Module)
    estimator.to("meta")
    assert all(start.class_counts.device.type == "meta" for start in estimator.starts)
