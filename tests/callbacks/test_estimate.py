"""The two stages in one fit, held against the separate fits that they stand for."""

import logging
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader
from toy import CLASSES, ForeignClassifier, ToyData, anchored, classifier, estimate_by_hand, trainer, weights

from noisylightning import (
    AnchorEstimator,
    BackwardCorrection,
    ForwardCorrection,
    ImportanceReweighting,
    NoCorrection,
)


def test_each_stage_is_the_fit_it_stands_for(tmp_path):
    """Stage one is a plain cross-entropy fit, T-hat is estimated from it, stage two a forward-corrected fit."""
    data = ToyData()
    callback = anchored(stage_one_epochs=3, estimate_from="last")
    both = classifier()
    trainer(tmp_path, [callback], max_epochs=5).fit(both, data)

    one = classifier(correction=NoCorrection(num_classes=CLASSES))
    trainer(tmp_path, max_epochs=3).fit(one, data)
    torch.testing.assert_close(callback.transition, estimate_by_hand(one, data), atol=1e-5, rtol=0)

    two = classifier(correction=ForwardCorrection(callback.transition))
    trainer(tmp_path, max_epochs=2).fit(two, data)
    assert callback.stage == 2
    assert torch.equal(weights(both), weights(two))
    assert torch.equal(both.correction.transition, callback.transition)


def test_one_clear_line_for_each_thing_that_happens(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer(tmp_path, [anchored(2)], max_epochs=3).fit(classifier(), ToyData())
    lines = [line for line in caplog.messages if line.startswith(("Stage", "T estimated"))]
    assert [line.split()[0:2] for line in lines] == [["Stage", "one:"], ["T", "estimated"], ["Stage", "two:"]]
    assert "relative L1 error" in lines[1]


def test_fast_dev_run_runs_both_stages_in_miniature(tmp_path):
    callback = anchored(5)
    trainer(tmp_path, [callback], max_epochs=10, fast_dev_run=4).fit(classifier(), ToyData())
    assert callback.stage == 2
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_of_one_batch_says_that_it_runs_one_stage(tmp_path):
    callback = anchored(5)
    with pytest.warns(UserWarning, match="fast_dev_run=2 runs both"):
        trainer(tmp_path, [callback], max_epochs=10, fast_dev_run=True).fit(classifier(), ToyData())
    assert callback.stage == 1


def test_predictions_stay_clean_posteriors(tmp_path):
    model = classifier()
    run = trainer(tmp_path, [anchored(2)], max_epochs=4)
    data = ToyData()
    run.fit(model, data)
    predicted = torch.cat(run.predict(model, data))
    expected = model.eval()(data.test.tensors[0]).softmax(dim=1)
    torch.testing.assert_close(predicted, expected.detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage_one_epochs": 0}, "stage_one_epochs must be at least 1, got 0"),
        ({"stage_one_steps": -1}, "stage_one_steps must be at least 1, got -1"),
        ({"stage_one_epochs": 1, "patience": 0}, "patience must be at least 1"),
        ({"stage_one_epochs": 1, "estimate_from": "first"}, "estimate_from must be one of 'best', 'last', got 'first'"),
        ({"stage_one_epochs": 1, "mode": "up"}, "mode must be one of"),
        ({"stage_one_epochs": 1, "reinit": "no"}, "reinit must be one of"),
        ({"monitor": "val_acc"}, "mode='min' would choose the weights of the worst 'val_acc': pass mode='max'"),
        ({"mode": "max"}, "mode='max' would choose the weights of the worst 'val_loss': pass mode='min'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        anchored(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correction": nn.CrossEntropyLoss()}, r"correction must be a Correction.*got CrossEntropyLoss\(\)"),
        ({"estimator": AnchorEstimator(3)}, "pass the class, or a functools.partial"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        anchored(1, **arguments)


@pytest.mark.parametrize(
    ("callback", "model", "options", "message"),
    [
        ({"stage_one_epochs": 4}, classifier, {}, "stage_one_epochs = 4 must be below the trainer's max_epochs = 4"),
        (
            {"stage_one_steps": 9},
            classifier,
            {"max_steps": 9, "max_epochs": -1},
            "stage_one_steps = 9 must be below the trainer's max_steps = 9",
        ),
        ({"stage_one_steps": 24}, classifier, {}, "must be below the 24 optimizer steps of the whole fit"),
        (
            {"stage_one_epochs": 1},
            lambda: classifier(correction=NoCorrection(num_classes=CLASSES)),
            {},
            "is NoCorrection, so stage two would not use T",
        ),
        ({"stage_one_epochs": 1}, ForeignClassifier, {}, "has no correction at 'correction'"),
        (
            {"stage_one_epochs": 1, "correction": ForwardCorrection(num_classes=3), "loss_attribute": "loss_fn"},
            ForeignClassifier,
            {},
            "has no criterion 'loss_fn'",
        ),
        ({"stage_one_epochs": 1, "reinit": "fresh"}, ForeignClassifier, {}, r"needs ForeignClassifier.reset_weights"),
        (
            {"stage_one_epochs": 1, "monitor": "val_acc", "mode": "max"},
            classifier,
            {},
            "validation logged only .*val_accuracy",
        ),
        ({"stage_one_epochs": 1}, classifier, {"limit_val_batches": 0}, "this fit has none: pass a validation loader"),
        (
            {"stage_one_epochs": 1, "monitor": "val_accuracy", "mode": "max"},
            classifier,
            {"check_val_every_n_epoch": 3},
            "has met no 'val_accuracy' in stage one",
        ),
    ],
)
def test_what_cannot_work_stops_at_once(tmp_path, callback, model, options, message):
    run = trainer(tmp_path, [anchored(**callback)], **{"max_epochs": 4} | options)
    with pytest.raises(ValueError, match=message):
        run.fit(model(), ToyData())


def test_a_module_can_be_pickled_after_the_fit(tmp_path):
    model = classifier()
    trainer(tmp_path, [anchored(1)], max_epochs=2).fit(model, ToyData())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(weights(again), weights(model))


def test_a_fit_without_training_data_is_refused(tmp_path):
    model = classifier()
    with pytest.raises(MisconfigurationException, match="`train_dataloader` must be implemented"):
        trainer(tmp_path, [anchored(1)], max_epochs=2).fit(model)


# A resumed fit


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    every = ModelCheckpoint(folder, filename="{epoch}")
    run = trainer(folder, [anchored(2), every], 3, enable_checkpointing=True, limit_train_batches=1)
    run.fit(classifier(), ToyData())
    return folder


def predict_otherwise(module, batch):
    return module(batch[0]), batch[1]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"estimator": partial(AnchorEstimator, quantile=0.9)},
            r"estimator='noisy.*this one has estimator=\{",
        ),
        ({"predict": predict_otherwise}, r"predict='noisylightning.*this one has predict='test_estimate.predict_other"),
        ({"loss_attribute": "correction2"}, r"loss_attribute='correction'.*this one has loss_attribute='correction2'"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(begun, tmp_path, arguments, message):
    model = classifier()
    object.__setattr__(model, "correction2", model.correction)
    run = trainer(tmp_path, [anchored(2, **arguments)], 4)
    with pytest.raises(ValueError, match=message):
        run.fit(model, ToyData(), ckpt_path=begun / "epoch=2.ckpt", weights_only=True)


@pytest.mark.parametrize("kind", [ForwardCorrection, BackwardCorrection, ImportanceReweighting])
def test_at_the_same_seed_stage_one_is_the_cross_entropy_run(tmp_path, kind):
    """Dropout, shuffling and all, to the bit."""

    class Shuffled(ToyData):
        def train_dataloader(self):
            return DataLoader(self.train, batch_size=16, shuffle=True)

    def fit(callbacks, epochs, correction):
        torch.manual_seed(5)
        folder = tmp_path / type(correction).__name__
        every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        fit = trainer(folder, [*callbacks, every], epochs, enable_checkpointing=True)
        fit.fit(classifier(dropout=0.3, correction=correction), Shuffled())
        return torch.load(folder / "epoch=1.ckpt", weights_only=True)["state_dict"]

    ours = fit([anchored(2)], 3, kind(num_classes=CLASSES))
    plain = fit([], 2, NoCorrection(num_classes=CLASSES))
    assert all(torch.equal(ours[name], value) for name, value in plain.items())


def test_the_least_noisy_validation_loss_says_which_weights_t_is_estimated_with(tmp_path):
    losses = []

    class Record(Callback):
        def on_validation_end(self, trainer, pl_module):
            losses.append(float(trainer.callback_metrics["val_loss"]))

    steep = lambda parameters: torch.optim.SGD(parameters, lr=4.0)  # noqa: E731  (its loss goes up and down)
    callback = anchored(4)
    trainer(tmp_path, [callback, Record()], max_epochs=5).fit(classifier(optimizer=steep), ToyData())
    assert callback.stage_one_epoch == min(range(4), key=losses.__getitem__) < 3
