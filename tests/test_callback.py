"""The two stages in one fit, held against the separate fits that they stand for."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from toy import CLASSES, TRUE, ForeignClassifier, Scripted, ToyData, backbone, classifier, trainer

from noisylightning import (
    AnchorEstimator,
    BackwardCorrection,
    EstimateTransitionCallback,
    ForwardCorrection,
    KnownTransitionCallback,
    NoCorrection,
)
from noisylightning.callbacks._attach import attach
from noisylightning.data import RandomCropFlip
from noisylightning.losses import CrossEntropy


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def estimate_by_hand(module: nn.Module, data: ToyData) -> torch.Tensor:
    inputs, labels = data.train.tensors
    estimator = AnchorEstimator(CLASSES)
    with torch.no_grad():
        estimator.update(module.eval()(inputs).softmax(dim=1), labels)
    return estimator.compute()


# The stages


def test_each_stage_is_the_fit_it_stands_for(tmp_path):
    """Stage one is a plain cross-entropy fit, T-hat is estimated from it, stage two a forward-corrected fit."""
    data = ToyData()
    callback = EstimateTransitionCallback(stage_one_epochs=3, estimate_from="last")
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


def test_best_weights_are_those_of_the_best_noisy_validation(tmp_path):
    data = ToyData()
    callback = EstimateTransitionCallback(stage_one_epochs=3)
    trainer(tmp_path, [callback], max_epochs=4).fit(Scripted(0.2, 0.9, 0.4), data)
    best = classifier(correction=NoCorrection(num_classes=CLASSES))
    trainer(tmp_path, max_epochs=2).fit(best, data)
    assert callback.stage_one_epoch == 1
    torch.testing.assert_close(callback.transition, estimate_by_hand(best, data), atol=1e-5, rtol=0)
    kept = torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"]
    for name, value in best.backbone.state_dict().items():
        torch.testing.assert_close(kept[f"backbone.{name}"], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reinit", ["initial", "keep", "fresh"])
def test_stage_two_begins_where_it_was_told_to(tmp_path, reinit):
    class Fresh(ForeignClassifier):
        def reset_weights(self):
            self.net.load_state_dict(backbone(seed=7).state_dict())

    seen = {}

    class Spy(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen["end"] = weights(pl_module)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 0:
                seen["start"] = weights(pl_module)
                seen["stage one's end"] = seen["end"]

    callback = EstimateTransitionCallback(
        stage_one_epochs=2,
        estimate_from="last",
        reinit=reinit,
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    model = Fresh()
    first = weights(model)
    trainer(tmp_path, [callback, Spy()], max_epochs=3).fit(model, ToyData())
    fresh = weights(backbone(seed=7))
    assert torch.equal(seen["start"], {"initial": first, "keep": seen["stage one's end"], "fresh": fresh}[reinit])


# The end of stage one


def stage_of_epochs(tmp_path, callback, callbacks=(), model=None, **kwargs) -> list[int]:
    stages = []

    class Record(Callback):
        def on_train_epoch_start(self, trainer, *args):
            stages.append(callback.stage)

    trainer(tmp_path, [callback, *callbacks, Record()], **kwargs).fit(model or classifier(), ToyData())
    return stages


def test_epochs_end_stage_one(tmp_path):
    assert stage_of_epochs(tmp_path, EstimateTransitionCallback(2), max_epochs=5) == [1, 1, 2, 2, 2]


def test_without_an_end_each_stage_is_as_long_as_the_fit_was(tmp_path):
    callback = EstimateTransitionCallback()
    assert stage_of_epochs(tmp_path, callback, max_epochs=2) == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="A fit without an end cannot be twice as long"):
        trainer(tmp_path, [EstimateTransitionCallback()], max_epochs=-1).fit(classifier(), ToyData())


def test_a_fit_counted_in_steps_is_doubled_in_steps(tmp_path):
    callback = EstimateTransitionCallback(estimate_from="last")
    run = trainer(tmp_path, [callback], max_epochs=-1, max_steps=8)
    run.fit(classifier(), ToyData())
    assert run.global_step == 16
    assert callback.stage == 2


def test_steps_end_stage_one_within_an_epoch(tmp_path):
    callback = EstimateTransitionCallback(stage_one_steps=8, estimate_from="last")  # six batches an epoch
    losses = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, *args):
            losses.append((trainer.global_step, callback.stage))

    trainer(tmp_path, [callback, Steps()], max_epochs=3).fit(classifier(), ToyData())
    assert [stage for _, stage in losses] == [1] * 8 + [2] * 10


def test_a_plateau_ends_stage_one(tmp_path):
    callback = EstimateTransitionCallback(8, patience=2)
    model = Scripted(0.3, 0.5, 0.5, 0.4, 0.9)
    assert stage_of_epochs(tmp_path, callback, model=model, max_epochs=10) == [1] * 4 + [2] * 6
    assert callback.stage_one_epoch == 1


def test_early_stopping_means_go_to_stage_two_and_then_stop(tmp_path):
    stopper = EarlyStopping(monitor="val_accuracy", mode="max", patience=2, min_delta=10.0)  # never better
    assert stage_of_epochs(tmp_path, EstimateTransitionCallback(8), [stopper], max_epochs=20) == [1] * 3 + [2] * 3


# Schedules, optimizers and peers


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer, trainer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer.max_epochs),
        lambda optimizer, trainer: {
            "scheduler": torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.1, total_steps=trainer.estimated_stepping_batches
            ),
            "interval": "step",
        },
        lambda optimizer, trainer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1),
        lambda optimizer, trainer: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
            "monitor": "val_flat",
        },
    ],
    ids=["cosine", "one-cycle", "step", "plateau"],
)
@pytest.mark.parametrize("by", ["epochs", "steps"])
def test_learning_rates_of_each_stage_are_those_of_a_fit_of_its_own(tmp_path, schedule, by):
    class Scheduled(ForeignClassifier):
        def __init__(self):
            super().__init__()
            self.rates = []

        def training_step(self, batch, batch_idx):
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_flat", 1.0)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return {"optimizer": optimizer, "lr_scheduler": schedule(optimizer, self.trainer)}

    end = {"stage_one_epochs": 4} if by == "epochs" else {"stage_one_steps": 24}
    callback = EstimateTransitionCallback(
        **end,
        estimate_from="last",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    both, one, two = Scheduled(), Scheduled(), Scheduled()
    if by == "steps" and schedule.__code__.co_names[-1] == "max_epochs":
        pytest.skip("a schedule counted in epochs spans whole epochs")
    trainer(tmp_path, [callback], max_epochs=7).fit(both, ToyData())
    trainer(tmp_path, max_epochs=4).fit(one, ToyData())
    trainer(tmp_path, max_epochs=3).fit(two, ToyData())
    assert both.rates == one.rates + two.rates


def test_the_trainer_keeps_its_limits(tmp_path):
    run = trainer(tmp_path, [EstimateTransitionCallback(2)], max_epochs=3)
    run.fit(classifier(), ToyData())
    assert run.max_epochs == 3
    assert run.max_steps == -1
    assert run.current_epoch == 3


def test_an_optimizer_that_is_not_rebuilt_is_refused(tmp_path):
    class Stale(ForeignClassifier):
        optimizer = None

        def configure_optimizers(self):
            self.optimizer = self.optimizer or torch.optim.SGD(self.parameters(), lr=0.1)
            return self.optimizer

    callback = EstimateTransitionCallback(
        1,
        estimate_from="last",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    with pytest.raises(RuntimeError, match="returned stage one's optimizer again"):
        trainer(tmp_path, [callback], max_epochs=2).fit(Stale(), ToyData())


def test_checkpoints_keep_the_best_of_each_stage(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", monitor="val_accuracy", mode="max", save_last=True)
    callback = EstimateTransitionCallback(3)
    run = trainer(tmp_path, [callback, checkpoint], max_epochs=6, enable_checkpointing=True)
    run.fit(classifier(), ToyData())
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    assert best["epoch"] >= 3
    assert torch.equal(best["state_dict"]["correction.transition"], callback.transition)
    epochs = [torch.load(path, weights_only=True)["epoch"] for path in (tmp_path / "ckpt").glob("epoch*.ckpt")]
    assert sorted(epoch >= 3 for epoch in epochs) == [False, True]
    assert len(list((tmp_path / "ckpt").glob("last*.ckpt"))) == 1


def test_weight_averages_begin_again(tmp_path):
    seen = {}

    class Average(WeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen.setdefault((callback.stage, int(self._average_model.n_averaged)), None)

    callback = EstimateTransitionCallback(2)
    trainer(tmp_path, [callback, Average()], max_epochs=4).fit(classifier(), ToyData())
    assert sorted(seen) == [(stage, count) for stage in (1, 2) for count in range(1, 13)]


# Projects that know nothing of us


def test_a_foreign_module_is_corrected_at_its_loss_attribute(tmp_path):
    model = ForeignClassifier()
    callback = EstimateTransitionCallback(
        2,
        monitor="val_acc",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max")
    run = trainer(tmp_path, [callback, checkpoint], max_epochs=4, enable_checkpointing=True)
    run.fit(model, ToyData())
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.criterion(logits, labels), ForwardCorrection(callback.transition)(logits, labels))
    # Its checkpoints load into the module as its author wrote it.
    plain = ForeignClassifier()
    plain.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])


def test_the_attached_correction_is_where_the_logits_are():
    """The trainer moves the module to the GPU, and back after the fit; ``meta`` stands in for it."""
    model, correction = ForeignClassifier(), ForwardCorrection(TRUE)
    attach(correction, model, "criterion")
    assert model.criterion(torch.zeros(2, CLASSES), torch.tensor([0, 1])).device.type == "cpu"
    logits, labels = torch.zeros(2, CLASSES, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):  # it has no values
        model.criterion(logits, labels)
    assert correction.transition.is_meta


def test_a_criterion_may_be_called_by_keywords():
    model, correction = ForeignClassifier(), ForwardCorrection(TRUE)
    attach(correction, model, "criterion")
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.criterion(input=logits, target=labels), correction(logits, labels))


def test_settings_that_the_criterion_loses_are_named():
    model = ForeignClassifier()
    model.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES), label_smoothing=0.1)
    correction = ForwardCorrection(num_classes=CLASSES, loss=CrossEntropy(weight=torch.ones(CLASSES)))
    with pytest.warns(UserWarning, match=r"ForeignClassifier.criterion has label_smoothing=0.1") as warned:
        attach(correction, model, "criterion")
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="weight=tensor|label_smoothing") as warned:
        attach(ForwardCorrection(num_classes=CLASSES), model, "criterion")
    assert len(warned) == 2


def test_a_foreign_module_may_take_the_transition_by_a_hook(tmp_path):
    class Hooked(ForeignClassifier):
        num_classes = CLASSES
        transition = None

        def on_transition_estimated(self, transition):
            self.transition = transition

    model = Hooked()
    callback = EstimateTransitionCallback(1, monitor="val_acc")
    trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert torch.equal(model.transition, callback.transition)


def test_batches_of_any_form_go_through_predict(tmp_path):
    def as_dict(samples):
        inputs, labels = zip(*samples, strict=True)
        return {"features": torch.stack(inputs), "labels": torch.stack(labels)}

    class Dicts(ForeignClassifier):
        def training_step(self, batch, batch_idx):
            return self.criterion(self(batch["features"]), batch["labels"])

    data = ToyData()
    loader = DataLoader(data.train, batch_size=16, collate_fn=as_dict)
    callback = EstimateTransitionCallback(
        1,
        estimate_from="last",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
        predict=lambda module, batch: (module(batch["features"]), batch["labels"]),
    )
    with pytest.warns(UserWarning, match="whatever augmentation"):
        trainer(tmp_path, [callback], max_epochs=2).fit(Dicts(), loader)
    assert callback.transition.shape == (CLASSES, CLASSES)
    callback = EstimateTransitionCallback(
        1, estimate_from="last", correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion"
    )
    with (
        pytest.warns(UserWarning, match="whatever augmentation"),
        pytest.raises(TypeError, match="a batch is a dict: pass predict"),
    ):
        trainer(tmp_path, [callback], max_epochs=2).fit(Dicts(), loader)


def test_manual_optimization_goes_through_both_stages(tmp_path):
    class Manual(ForeignClassifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    callback = EstimateTransitionCallback(
        2, estimate_from="last", correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion"
    )
    both, two = Manual(), Manual()
    trainer(tmp_path, [callback], max_epochs=4).fit(both, ToyData())
    again = ForwardCorrection(callback.transition)
    two.criterion = again
    trainer(tmp_path, max_epochs=2).fit(two, ToyData())
    assert torch.equal(weights(both.net), weights(two.net))


# What it leaves behind


def test_files_and_logger_get_the_estimate(tmp_path):
    callback = EstimateTransitionCallback(1)
    run = trainer(tmp_path, [callback], max_epochs=2, logger=TensorBoardLogger(tmp_path, "logs"))
    run.fit(classifier(), ToyData())
    folder = Path(run.log_dir)
    assert np.array_equal(np.load(folder / "transition.npy", allow_pickle=False), callback.transition.numpy())
    np.testing.assert_allclose(np.loadtxt(folder / "transition.csv", delimiter=","), callback.transition, atol=1e-7)
    assert (folder / "transition.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder)).Reload()
    assert "transition" in events.Tags()["images"]


def test_one_clear_line_for_each_thing_that_happens(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer(tmp_path, [EstimateTransitionCallback(2)], max_epochs=3).fit(classifier(), ToyData())
    lines = [line for line in caplog.messages if line.startswith(("Stage", "T estimated"))]
    assert [line.split()[0:2] for line in lines] == [["Stage", "one:"], ["T", "estimated"], ["Stage", "two:"]]
    assert "relative L1 error" in lines[1]


def test_fast_dev_run_runs_both_stages_in_miniature(tmp_path):
    callback = EstimateTransitionCallback(5)
    trainer(tmp_path, [callback], max_epochs=10, fast_dev_run=4).fit(classifier(), ToyData())
    assert callback.stage == 2
    assert not list(tmp_path.iterdir())


def test_fast_dev_run_of_one_batch_says_that_it_runs_one_stage(tmp_path):
    callback = EstimateTransitionCallback(5)
    with pytest.warns(UserWarning, match="fast_dev_run=2 runs both"):
        trainer(tmp_path, [callback], max_epochs=10, fast_dev_run=True).fit(classifier(), ToyData())
    assert callback.stage == 1


def test_predictions_stay_clean_posteriors(tmp_path):
    model = classifier()
    run = trainer(tmp_path, [EstimateTransitionCallback(2)], max_epochs=4)
    data = ToyData()
    run.fit(model, data)
    predicted = torch.cat(run.predict(model, data))
    expected = model.eval()(data.test.tensors[0]).softmax(dim=1)
    torch.testing.assert_close(predicted, expected.detach())


def test_known_transition_is_handed_to_the_correction(tmp_path):
    model = classifier()
    trainer(tmp_path, [KnownTransitionCallback()], max_epochs=1).fit(model, ToyData())
    assert torch.equal(model.correction.transition, TRUE)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage_one_epochs": 0}, "stage_one_epochs must be at least 1, got 0"),
        ({"stage_one_steps": -1}, "stage_one_steps must be at least 1, got -1"),
        ({"stage_one_epochs": 1, "patience": 0}, "patience must be at least 1"),
        ({"stage_one_epochs": 1, "estimate_from": "first"}, "estimate_from must be one of 'best', 'last', got 'first'"),
        ({"stage_one_epochs": 1, "mode": "up"}, "mode must be one of"),
        ({"stage_one_epochs": 1, "reinit": "no"}, "reinit must be one of"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EstimateTransitionCallback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correction": nn.CrossEntropyLoss()}, r"correction must be a Correction.*got CrossEntropyLoss\(\)"),
        ({"estimator": AnchorEstimator(3)}, "pass the class, or a functools.partial"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        EstimateTransitionCallback(1, **arguments)


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
        ({"stage_one_epochs": 1, "monitor": "val_acc"}, classifier, {}, "validation logged only .*val_accuracy"),
        ({"stage_one_epochs": 1}, classifier, {"limit_val_batches": 0}, "this fit has none: pass a validation loader"),
        ({"stage_one_epochs": 1}, classifier, {"check_val_every_n_epoch": 3}, "has met no 'val_accuracy' in stage one"),
    ],
)
def test_what_cannot_work_stops_at_once(tmp_path, callback, model, options, message):
    run = trainer(tmp_path, [EstimateTransitionCallback(**callback)], **{"max_epochs": 4} | options)
    with pytest.raises(ValueError, match=message):
        run.fit(model(), ToyData())


def test_a_module_can_be_pickled_after_the_fit(tmp_path):
    model = classifier()
    trainer(tmp_path, [EstimateTransitionCallback(1)], max_epochs=2).fit(model, ToyData())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(weights(again), weights(model))


def test_a_fit_without_training_data_is_refused(tmp_path):
    model = classifier()
    with pytest.raises(MisconfigurationException, match="`train_dataloader` must be implemented"):
        trainer(tmp_path, [EstimateTransitionCallback(1)], max_epochs=2).fit(model)


def test_iterable_data_is_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*ToyData().train.tensors, strict=True))

    callback = EstimateTransitionCallback(1, estimate_from="last")
    with pytest.raises(TypeError, match="iterable Stream, whose samples have no index"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), DataLoader(Stream(), batch_size=16))
    assert callback.stage == 1


@pytest.mark.parametrize(
    ("predict", "error", "message"),
    [
        (
            lambda module, batch: (module(batch[0])[:, :2], batch[1]),
            ValueError,
            r"logits of shape \(N, 3\), but the network gave shape \(16, 2\)",
        ),
        (lambda module, batch: ([1.0], batch[1]), ValueError, "but the network gave a list"),
        (lambda module, batch: module(batch[0]), TypeError, r"predict must return .* got a Tensor"),
        (lambda module, batch: (module(batch[0]), [0]), TypeError, r"predict must return .* got \(Tensor, list\)"),
        (lambda module, batch: (module(batch[0]), batch[1].float()), TypeError, "needs integer noisy labels"),
    ],
)
def test_what_the_estimation_pass_cannot_take_is_refused_before_the_first_step(tmp_path, predict, error, message):
    run = trainer(tmp_path, [EstimateTransitionCallback(1, estimate_from="last", predict=predict)], max_epochs=2)
    with pytest.raises(error, match=message):
        run.fit(classifier(), ToyData())
    assert run.global_step == 0


def test_the_rehearsal_leaves_no_trace(tmp_path, monkeypatch):
    """Neither random state nor training flags: the fit is the one without it."""
    one, two = classifier(dropout=0.3), classifier(dropout=0.3)
    torch.manual_seed(0)
    trainer(tmp_path, [EstimateTransitionCallback(2)], max_epochs=3).fit(one, ToyData())
    monkeypatch.setattr(EstimateTransitionCallback, "_rehearse", lambda *args: None)
    torch.manual_seed(0)
    trainer(tmp_path, [EstimateTransitionCallback(2)], max_epochs=3).fit(two, ToyData())
    assert torch.equal(weights(one), weights(two))


def test_a_criterion_that_training_does_not_call_is_refused(tmp_path):
    class Deaf(ForeignClassifier):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.criterion(self(batch[0]), batch[1])

    correction = ForwardCorrection(num_classes=CLASSES)
    callback = EstimateTransitionCallback(2, estimate_from="last", correction=correction, loss_attribute="criterion")
    with pytest.raises(ValueError, match=r"Deaf.training_step does not call its 'criterion'"):
        trainer(tmp_path, [callback], max_epochs=4).fit(Deaf(), ToyData())


def test_an_estimation_loader_may_give_whole_batches(tmp_path):
    """A data set whose items are batches: ``DataLoader(batch_size=None)``."""

    class Batches(Dataset):
        def __init__(self, whole):
            self.whole = whole

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return self.whole[16 * index : 16 * (index + 1)]

    class Data(ToyData):
        def estimation_dataloader(self):
            return DataLoader(Batches(self.train), batch_size=None)

    batches, samples = EstimateTransitionCallback(1), EstimateTransitionCallback(1)
    trainer(tmp_path, [batches], max_epochs=2).fit(classifier(), Data())
    trainer(tmp_path, [samples], max_epochs=2).fit(classifier(), ToyData())
    assert torch.equal(batches.transition, samples.transition)


def test_diverged_networks_are_refused(tmp_path):
    callback = EstimateTransitionCallback(
        1, estimate_from="last", predict=lambda module, batch: (module(batch[0]) * float("nan"), batch[1])
    )
    with pytest.raises(ValueError, match="NaN or infinite predictions"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), ToyData())


def test_a_shuffling_estimation_loader_is_named(tmp_path):
    class Shuffled(ToyData):
        def estimation_dataloader(self):
            return DataLoader(self.train, batch_size=16, shuffle=True)

    with pytest.warns(UserWarning, match=r"estimation_dataloader\(\) draws from RandomSampler"):
        trainer(tmp_path, [EstimateTransitionCallback(1)], max_epochs=2).fit(classifier(), Shuffled())


def test_an_augmenting_estimation_loader_is_named(tmp_path):
    class Varied(TensorDataset):
        transform = RandomCropFlip(5)

    class Data(ToyData):
        def estimation_dataloader(self):
            return DataLoader(Varied(*self.train.tensors), batch_size=16)

    with pytest.warns(UserWarning, match="reads a Varied that varies its inputs at random"):
        trainer(tmp_path, [EstimateTransitionCallback(1)], max_epochs=2).fit(classifier(), Data())


def test_t_hat_is_saved_before_backward_refuses_it(tmp_path):
    """T-hat is finished work: a singular one must not be lost to the error that it causes."""

    class Singular(AnchorEstimator):
        def compute(self):
            return torch.full((CLASSES, CLASSES), 1 / CLASSES)

    callback = EstimateTransitionCallback(1, estimator=Singular)
    model = classifier(correction=BackwardCorrection(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"[Ss]ingular|condition"):
        trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert (tmp_path / "lightning_logs" / "version_0" / "transition.npy").exists()


def test_known_transition_needs_one(tmp_path):
    class Unknown(ToyData):
        transition = None

    with pytest.raises(ValueError, match="needs a data module that knows T"):
        trainer(tmp_path, [KnownTransitionCallback()], max_epochs=1).fit(classifier(), Unknown())


def test_a_fit_that_ends_in_stage_one_says_so(tmp_path):
    run = trainer(tmp_path, [EstimateTransitionCallback(3)], max_epochs=5, max_steps=6)
    with pytest.warns(UserWarning, match="T was not estimated"):
        run.fit(classifier(), ToyData())
