"""When stage one ends, and which weights it leaves."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from toy import CLASSES, Scripted, ToyData, anchored, classifier, estimate_by_hand, trainer

from noisylightning import (
    NoCorrection,
)


def stage_of_epochs(tmp_path, callback, callbacks=(), model=None, **kwargs) -> list[int]:
    stages = []

    class Record(Callback):
        def on_train_epoch_start(self, trainer, *args):
            stages.append(callback.stage)

    trainer(tmp_path, [callback, *callbacks, Record()], **kwargs).fit(model or classifier(), ToyData())
    return stages


def test_best_weights_are_those_of_the_best_noisy_validation(tmp_path):
    data = ToyData()
    callback = anchored(stage_one_epochs=3, monitor="val_accuracy", mode="max")
    trainer(tmp_path, [callback], max_epochs=4).fit(Scripted(0.2, 0.9, 0.4), data)
    best = classifier(correction=NoCorrection(num_classes=CLASSES))
    trainer(tmp_path, max_epochs=2).fit(best, data)
    assert callback.stage_one_epoch == 1
    torch.testing.assert_close(callback.transition, estimate_by_hand(best, data), atol=1e-5, rtol=0)
    kept = torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"]
    for name, value in best.backbone.state_dict().items():
        torch.testing.assert_close(kept[f"backbone.{name}"], value, atol=1e-5, rtol=0)


def test_epochs_end_stage_one(tmp_path):
    assert stage_of_epochs(tmp_path, anchored(2), max_epochs=5) == [1, 1, 2, 2, 2]


def test_without_an_end_each_stage_is_as_long_as_the_fit_was(tmp_path):
    callback = anchored()
    assert stage_of_epochs(tmp_path, callback, max_epochs=2) == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="A fit without an end cannot be twice as long"):
        trainer(tmp_path, [anchored()], max_epochs=-1).fit(classifier(), ToyData())


def test_a_fit_counted_in_steps_is_doubled_in_steps(tmp_path):
    callback = anchored(estimate_from="last")
    run = trainer(tmp_path, [callback], max_epochs=-1, max_steps=8)
    run.fit(classifier(), ToyData())
    assert run.global_step == 16
    assert callback.stage == 2


def test_steps_end_stage_one_within_an_epoch(tmp_path):
    callback = anchored(stage_one_steps=8, estimate_from="last")  # six batches an epoch
    losses = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, *args):
            losses.append((trainer.global_step, callback.stage))

    trainer(tmp_path, [callback, Steps()], max_epochs=3).fit(classifier(), ToyData())
    assert [stage for _, stage in losses] == [1] * 8 + [2] * 10


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # the accuracies are made up
def test_a_plateau_ends_stage_one(tmp_path):
    callback = anchored(8, patience=2, monitor="val_accuracy", mode="max")
    model = Scripted(0.3, 0.5, 0.5, 0.4, 0.9)
    assert stage_of_epochs(tmp_path, callback, model=model, max_epochs=10) == [1] * 4 + [2] * 6
    assert callback.stage_one_epoch == 1


def test_early_stopping_means_go_to_stage_two_and_then_stop(tmp_path):
    stopper = EarlyStopping(monitor="val_accuracy", mode="max", patience=2, min_delta=10.0)  # never better
    assert stage_of_epochs(tmp_path, anchored(8), [stopper], max_epochs=20) == [1] * 3 + [2] * 3


def test_a_fit_that_ends_in_stage_one_says_so(tmp_path):
    run = trainer(tmp_path, [anchored(3)], max_epochs=5, max_steps=6)
    with pytest.warns(UserWarning, match="T was not estimated"):
        run.fit(classifier(), ToyData())
