"""What every estimator asks of the predictions that it is fed with."""

import pytest
import torch

from noisylightning.estimators import AnchorEstimator, TransitionEstimator, check_needs
from noisylightning.predictions import Predictions


class Demanding(AnchorEstimator):
    needs = frozenset({"features", "held_out"})


def test_a_batch_must_hold_what_is_needed():
    logits, labels, features = torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="Demanding needs features, which these predictions do not have: collect"):
        Demanding(2).update(Predictions(logits, labels))
    Demanding(2).update(Predictions(logits, labels, features=features))  # held out may be those of another batch


@pytest.mark.parametrize("estimator", [Demanding, Demanding(2)])
def test_needs_are_compared_with_what_is_there(estimator):
    check_needs(estimator, frozenset({"features", "clean_labels", "held_out"}))
    with pytest.raises(ValueError, match=r"Demanding needs features and held_out, .*val_fraction.* another estimator"):
        check_needs(estimator, frozenset({"clean_labels"}))


def test_labels_of_several_annotators_are_refused():
    with pytest.raises(ValueError, match="takes one noisy label a sample, got 3"):
        AnchorEstimator(2).update(Predictions(torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.long)))


def test_an_estimator_without_standard_errors_refuses_replicates_at_once():
    class Plain(TransitionEstimator):
        def compute(self):
            return torch.eye(self.num_classes)

    with pytest.raises(ValueError, match="Plain computes no standard errors: pass replicates=0"):
        Plain(2, replicates=10)
    assert Plain(2).standard_error() is None
