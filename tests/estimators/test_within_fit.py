"""The pass within a fit: what it says of each sample, and what it refuses before the first step."""

from functools import partial

import pytest
import torch
from torch import nn
from toy import CLASSES, FeatureMeans, ForeignClassifier, ToyData, anchored, classifier, means_by_hand, trainer

from noisylightning import (
    AnchorEstimator,
    ConfidentJointEstimator,
    DualTEstimator,
    ForwardCorrection,
)
from noisylightning.data import ArrayDataModule
from noisylightning.predictions import Predictions


class Keeping(AnchorEstimator):
    """Keeps what it is fed with."""

    seen: list[Predictions]

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        Keeping.seen = []

    def _accumulate(self, batch: Predictions) -> None:
        super()._accumulate(batch)
        Keeping.seen.append(batch)


class NeedsHeldOut(Keeping):
    needs = frozenset({"held_out"})


class NeedsCleanLabels(Keeping):
    needs = frozenset({"clean_labels"})


def fit(tmp_path, data, estimator=Keeping, **arguments) -> Predictions:
    callback = anchored(1, estimate_from="last", estimator=estimator, **arguments)
    trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), data)
    return Predictions.concatenate(Keeping.seen)


def test_every_sample_comes_once_with_its_place(tmp_path):
    seen = fit(tmp_path, ToyData())
    assert torch.equal(seen.index, torch.arange(96))
    assert torch.equal(seen.noisy_labels, ToyData().train.tensors[1])
    assert not seen.held_out.any()


def test_a_place_is_that_in_the_training_data_and_validation_samples_are_held_out(tmp_path):
    """Trusted samples are left out of the pass, so places in the loader's data set are others."""
    inputs, labels = ToyData().train.tensors
    data = ArrayDataModule((inputs, labels), trusted=[0, 5, 90], val_fraction=0.25, batch_size=16)
    seen = fit(tmp_path, data, NeedsHeldOut)
    assert seen.index.tolist() == [place for place in range(96) if place not in (0, 5, 90)]
    assert torch.equal(seen.noisy_labels, labels[seen.index])
    assert torch.equal(seen.index[seen.held_out], data.val_index.sort().values)


def test_places_are_unknown_where_rows_are_no_samples(tmp_path):
    def first_ten(module, batch):
        return module(batch[0])[:10], batch[1][:10]

    seen = fit(tmp_path, ToyData(), predict=first_ten)
    assert len(seen) == 60
    assert (seen.index == -1).all()


@pytest.mark.parametrize("estimator", [NeedsHeldOut, NeedsCleanLabels])
def test_a_need_that_the_fit_does_not_meet_ends_it_before_the_first_step(tmp_path, estimator):
    run = trainer(tmp_path, [anchored(1, estimate_from="last", estimator=estimator)], max_epochs=2)
    with pytest.raises(ValueError, match=r"needs (held_out|clean_labels), which these predictions do not have"):
        run.fit(classifier(), ToyData())
    assert run.global_step == 0


FOREIGN = {"correction": ForwardCorrection(num_classes=CLASSES), "loss_attribute": "criterion"}


@pytest.mark.parametrize(("layer", "depth", "width"), [(None, 3, 16), ("net.0", 0, 5)])
def test_an_estimator_is_fed_with_the_features_that_it_needs(tmp_path, layer, depth, width):
    """Those of the network that T is estimated from, in the pass that gives its predictions."""
    means = partial(FeatureMeans, width=width)
    callback = anchored(1, estimator=means, estimate_from="last", feature_layer=layer, **FOREIGN)
    model, data = ForeignClassifier(), ToyData()
    trainer(tmp_path, [callback], max_epochs=2).fit(model, data)
    model.load_state_dict(torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"])
    expected = means_by_hand(model.net[:depth](data.train.tensors[0]), data.train.tensors[1])
    torch.testing.assert_close(FeatureMeans.means, expected, atol=1e-5, rtol=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("layer", "message"), [("net.9", "did you mean"), ("criterion", "takes no part")])
def test_a_layer_that_gives_no_features_is_refused_before_the_first_step(tmp_path, layer, message):
    callback = anchored(1, estimator=FeatureMeans, estimate_from="last", feature_layer=layer, **FOREIGN)
    run = trainer(tmp_path, [callback], max_epochs=2)
    with pytest.raises(ValueError, match=message):
        run.fit(ForeignClassifier(), ToyData())
    assert run.global_step == 0


def test_a_network_that_ends_in_a_softmax_is_refused_before_the_first_step(tmp_path):
    callback = anchored(1, estimate_from="last", **FOREIGN)
    run, model = trainer(tmp_path, [callback], max_epochs=2), ForeignClassifier()
    model.net.append(nn.Softmax(dim=1))
    with pytest.raises(ValueError, match=r"outputs are probabilities.*drop the network's final softmax"):
        run.fit(model, ToyData())
    assert run.global_step == 0


def test_a_network_that_begins_with_zeros_is_not_refused(tmp_path):
    model = ForeignClassifier()
    nn.init.zeros_(model.net[-1].weight)
    nn.init.zeros_(model.net[-1].bias)
    callback = anchored(1, estimate_from="last", **FOREIGN)
    trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert callback.transition is not None


@pytest.mark.parametrize("estimator", [AnchorEstimator, DualTEstimator, ConfidentJointEstimator])
def test_two_passes_within_a_fit_give_what_one_gives(tmp_path, estimator, monkeypatch):
    def transition():
        data = ToyData()
        data.train_index = torch.arange(48)
        callback = anchored(6, estimate_from="last", estimator=estimator)
        trainer(tmp_path, [callback], max_epochs=7).fit(classifier(), data)
        return callback.transition

    one = transition()
    for module in ("anchor", "confident_joint"):
        monkeypatch.setattr(f"noisylightning.estimators.{module}.LARGEST_KEPT", 1)
    ended = []
    monkeypatch.setattr(estimator, "end_survey", lambda self, end=estimator.end_survey: ended.append(end(self)))
    assert torch.equal(transition(), one)
    assert len(ended) == 2  # of the rehearsal and of the pass
