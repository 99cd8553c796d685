"""The engine: a new phase in it, and what a restart within a fit does to schedules, optimizers and peers."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint, WeightAveraging
from toy import CLASSES, ForeignClassifier, ToyData, anchored, classifier, trainer, weights

from noisylightning import (
    ForwardCorrection,
)
from noisylightning.phases import CorrectionPhase, EstimationPhase, NoisyLabelsPhase, Phase, RunPhases


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
    callback = anchored(
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
    run = trainer(tmp_path, [anchored(2)], max_epochs=3)
    run.fit(classifier(), ToyData())
    assert run.max_epochs == 3
    assert run.max_steps == -1
    assert run.current_epoch == 3


def test_checkpoints_keep_the_best_of_each_stage(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", monitor="val_accuracy", mode="max", save_last=True)
    callback = anchored(3)
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

    callback = anchored(2)
    trainer(tmp_path, [callback, Average()], max_epochs=4).fit(classifier(), ToyData())
    assert sorted(seen) == [(stage, count) for stage in (1, 2) for count in range(1, 13)]


# What a phase is to the engine


class Pause(Phase):
    """Trains on as it is, for some epochs: a phase that the package does not know."""

    name = "pause"

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.left = epochs

    def on_train_epoch_end(self, fit):
        self.left -= 1

    def is_over(self, fit):
        return self.left == 0

    @property
    def config(self):
        return {"pause": self.epochs}

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state):
        self.left = state["left"]


def with_a_pause(folder, ckpt_path=None, pause=2):
    phases = [NoisyLabelsPhase(1, estimate_from="last"), Pause(pause), EstimationPhase(), CorrectionPhase()]
    names = []

    class Names(Callback):
        def on_train_batch_start(self, trainer, *args):
            names.append(run.phase.name)

    run, model = RunPhases(phases), classifier(dropout=0.3)
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fit = trainer(folder, [run, every, Names()], max_epochs=5, enable_checkpointing=True)
    torch.manual_seed(0)
    fit.fit(model, ToyData(), ckpt_path=ckpt_path, weights_only=True)
    return model, names[::6], run


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_new_phase_is_a_class_and_an_entry_in_the_list(tmp_path):
    whole, names, run = with_a_pause(tmp_path)
    assert torch.equal(whole.correction.transition, run._memory.transition)
    assert names == ["noisy labels", "pause", "pause", "correction", "correction"]
    assert run.stage == 3
    for epoch in (0, 1, 2, 3):
        again, *_ = with_a_pause(tmp_path, tmp_path / f"epoch={epoch}.ckpt")
        assert torch.equal(weights(again), weights(whole)), epoch
    with pytest.raises(ValueError, match=r"RunPhases\(pause=2\), but this one has pause=1"):
        with_a_pause(tmp_path, tmp_path / "epoch=1.ckpt", pause=1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_interrupted_beginning_is_done_again(tmp_path):
    """Stopped within the estimation, the fit resumes before it, and estimates from the same weights."""

    def fit(dies, **options):
        def predict(module, batch):
            if dies and module.trainer.global_step > 0:
                raise KeyboardInterrupt
            return module(batch[0]), batch[1]

        callback, model = anchored(2, predict=predict), classifier(dropout=0.3)
        run = trainer(tmp_path, [callback, OnExceptionCheckpoint(tmp_path)], max_epochs=4, enable_checkpointing=True)
        torch.manual_seed(0)
        try:
            run.fit(model, ToyData(), weights_only=True, **options)
        except (KeyboardInterrupt, SystemExit):
            assert callback.stage == 1
        return callback.transition, weights(model)

    whole = fit(dies=False)
    fit(dies=True)
    again = fit(dies=False, ckpt_path=tmp_path / "on_exception.ckpt")
    assert all(map(torch.equal, again, whole))


def test_the_bar_says_which_stage(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append(trainer.progress_bar_metrics["stage"])

    callback = anchored(stage_one_steps=8, estimate_from="last")
    run = trainer(tmp_path, [callback, Look()], max_epochs=3)
    run.fit(classifier(), ToyData())
    assert seen == [1.0] * 8 + [2.0] * 10
