"""T-hats that a correction does not take are left out of refinement, and not the end of the fit."""

from functools import partial

import pytest
import torch
from toy import CLASSES, TRUE, ToyData, classifier, trainer

from noisylightning import AnchorEstimator, BackwardCorrection, ConsensusEstimator, EstimateTransitionCallback
from noisylightning.errors import BadValue


class Right(AnchorEstimator):
    """The true T."""

    def compute(self):
        return TRUE.clone()


class Singular(AnchorEstimator):
    """A T that cannot be inverted."""

    def compute(self):
        return torch.full((CLASSES, CLASSES), 1 / CLASSES)


def fit(tmp_path, starts):
    callback = EstimateTransitionCallback(
        stage_one_epochs=1, estimator=partial(ConsensusEstimator, starts=starts), round_epochs=1
    )
    model = classifier(correction=BackwardCorrection(num_classes=CLASSES))
    trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    return callback


@pytest.mark.filterwarnings("ignore:No T-hat foretells", "ignore:T-hat contradicts")
def test_one_of_several_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    callback = fit(tmp_path, [Singular, Right])
    assert "Singular is left out: " in caplog.text
    assert callback.added_epochs == 2 * 2 + 2 * 2 + 2 * 2  # folds, and two rounds of the identity and the other
    assert callback.phase.name == "correction"


def test_where_none_is_left_the_fit_ends(tmp_path):
    with pytest.raises(BadValue, match=r"[Ss]ingular|condition"):
        fit(tmp_path, [Singular])


def test_rounds_end_where_every_refined_one_is_left_out(tmp_path, monkeypatch):
    def fail(*_):
        raise BadValue("It does not go on.")

    monkeypatch.setattr("noisylightning.functional.refinement.maximize", fail)
    with pytest.warns(UserWarning, match=r"No T-hat foretells held-out labels better than none \(each was left out\)"):
        callback = fit(tmp_path, [Right])
    assert callback.transition.equal(torch.eye(CLASSES))
    assert callback.added_epochs == 2 * 2 + 2 * 2
