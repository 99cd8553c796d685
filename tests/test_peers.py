"""The two stages beside what else a Lightning project uses: nothing breaks, or one sentence says why not."""

import os
import signal

import lightning.pytorch
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping as OtherEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint as OtherModelCheckpoint
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader
from toy import CLASSES, ForeignClassifier, ToyData, anchored, backbone, classifier, trainer

from noisylightning import ForwardCorrection, NoisyLabelClassifier, internals


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.1},
        {"limit_train_batches": 2, "limit_val_batches": 1},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 0.5},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"max_steps": 20, "max_epochs": -1},
        {"enable_progress_bar": True},
        {"detect_anomaly": True},
    ],
    ids=lambda options: "-".join(map(str, next(iter(options.items())))),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trainer_options_go_through_both_stages(tmp_path, options):
    callback = anchored(2)
    run = trainer(tmp_path, [callback], **{"max_epochs": 4} | options)
    run.fit(classifier(), ToyData())
    assert callback.stage == 2
    assert bool(torch.isfinite(run.callback_metrics["train_loss"]))


@pytest.mark.parametrize(
    "peer",
    [
        lambda folder: LearningRateMonitor(),
        lambda folder: Timer("00:01:00:00"),
        lambda folder: RichProgressBar(),
        lambda folder: OnExceptionCheckpoint(folder),
    ],
    ids=["rates", "timer", "rich", "on exception"],
)
@pytest.mark.filterwarnings("ignore:.*fit\\(ckpt_path=None\\)|.*there is no last checkpoint:UserWarning")
@pytest.mark.filterwarnings('ignore:.fit\\(ckpt_path="last"\\) is set')
def test_other_callbacks_go_through_both_stages(tmp_path, peer):
    callback = anchored(1)
    options = {"enable_progress_bar": True, "logger": CSVLogger(tmp_path), "enable_checkpointing": True}
    trainer(tmp_path, [callback, peer(tmp_path)], max_epochs=3, **options).fit(classifier(), ToyData())
    assert callback.stage == 2


def test_the_timer_keeps_its_budget(tmp_path):
    """A timer's state is the time that is gone: a restart must not give it back."""
    timer = Timer("00:01:00:00")
    callback = anchored(2)
    seen = {}

    class Spy(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen[trainer.current_epoch] = timer.time_elapsed("train")

    trainer(tmp_path, [callback, timer, Spy()], max_epochs=3).fit(classifier(), ToyData())
    assert seen[0] < seen[1] < seen[2]


def test_several_validation_loaders(tmp_path):
    class Two(ToyData):
        def val_dataloader(self):
            return [DataLoader(self.val, batch_size=16), DataLoader(self.val, batch_size=16)]

    class Model(ForeignClassifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    callback = anchored(
        1,
        monitor="val_acc/dataloader_idx_1",
        mode="max",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    trainer(tmp_path, [callback], max_epochs=2).fit(Model(), Two())
    assert callback.stage == 2


def test_batch_statistics_begin_again_and_are_left_alone_by_the_estimation(tmp_path):
    class Normed(NoisyLabelClassifier):
        def build_backbone(self):
            return nn.Sequential(backbone(), nn.BatchNorm1d(CLASSES))

    counts = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            counts.append(int(pl_module.backbone[1].num_batches_tracked))

    model = Normed(correction=ForwardCorrection(num_classes=CLASSES))
    trainer(tmp_path, [anchored(1), Spy()], max_epochs=2).fit(model, ToyData())
    assert counts == [*range(6), *range(6)]


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # after one epoch from any weights
def test_state_that_is_no_tensor_begins_again_too(tmp_path):
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

        def forward(self, inputs):
            self.count += self.training
            return super().forward(inputs)

    counts = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            counts.append(pl_module.backbone.count)

    model = NoisyLabelClassifier(Counting(5, CLASSES), ForwardCorrection(num_classes=CLASSES))
    trainer(tmp_path, [anchored(1), Spy()], max_epochs=2).fit(model, ToyData())
    assert counts == [*range(6), *range(6)]


def test_frozen_submodules_stay_as_they_were(tmp_path):
    """The estimation pass gives each submodule its own training flag back."""

    class Frozen(NoisyLabelClassifier):
        def on_train_epoch_start(self):
            self.backbone[0].eval()

    flags = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            flags.append((pl_module.backbone[0].training, pl_module.backbone[2].training))

    model = Frozen(backbone(dropout=0.1), ForwardCorrection(num_classes=CLASSES))
    trainer(tmp_path, [anchored(1), Spy()], max_epochs=2).fit(model, ToyData())
    assert set(flags) == {(False, True)}


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_augmentation_by_transfer_hooks_stays_out_of_the_estimation(tmp_path):
    flags = []

    class Hooked(NoisyLabelClassifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            flags.append((self.trainer.training, callback.stage))
            return batch

    callback = anchored(1, estimate_from="last")
    model = Hooked(backbone(), ForwardCorrection(num_classes=CLASSES))
    trainer(tmp_path, [callback], max_epochs=2, limit_val_batches=0).fit(model, ToyData())
    rehearsal = [(False, 1)]
    assert flags == rehearsal + [(True, 1)] * 6 + [(False, 1)] * 6 + [(True, 2)] * 6


@pytest.mark.parametrize("owner", ["module", "data"])
@pytest.mark.parametrize("hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"])
@pytest.mark.filterwarnings("ignore:You have overridden")
def test_batches_are_brought_to_the_network_as_in_training(tmp_path, owner, hook):
    """The loader's inputs are of a form that the network cannot take before the hook."""

    class Folded(ToyData):
        def __init__(self):
            super().__init__()
            for part in (self.train, self.val):
                part.tensors = (part.tensors[0].unsqueeze(2), part.tensors[1])

    def unfold(self, batch, *args):
        return batch[0].squeeze(2), batch[1]

    callback, model, data = anchored(1), classifier(), Folded()
    target = type(model) if owner == "module" else Folded
    kind = type("Hooked", (target,), {hook: unfold})
    (model if owner == "module" else data).__class__ = kind
    plain, other = anchored(1), tmp_path / "plain"
    trainer(tmp_path, [callback], max_epochs=2).fit(model, data)
    trainer(other, [plain], max_epochs=2).fit(classifier(), ToyData())
    assert torch.equal(callback.transition, plain.transition)


def test_a_compiled_module_goes_through_both_stages(tmp_path):
    callback = anchored(1)
    model = torch.compile(classifier(), backend="eager")
    trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert callback.stage == 2


def test_it_works_inside_the_other_lightning(tmp_path):
    """`lightning.pytorch` has classes of its own under the same names."""

    class Model(lightning.pytorch.LightningModule):
        forward = ForeignClassifier.forward
        training_step = ForeignClassifier.training_step
        validation_step = ForeignClassifier.validation_step
        configure_optimizers = ForeignClassifier.configure_optimizers

        def __init__(self):
            super().__init__()
            self.net = backbone()
            self.criterion = nn.CrossEntropyLoss()

    callback = anchored(
        4, monitor="val_acc", mode="max", correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion"
    )
    stopper = OtherEarlyStopping("val_acc", mode="max", patience=1, min_delta=9)
    checkpoint = OtherModelCheckpoint(tmp_path, monitor="val_acc", mode="max", filename="{epoch}")
    run = lightning.pytorch.Trainer(
        default_root_dir=tmp_path,
        max_epochs=8,
        accelerator="cpu",
        callbacks=[callback, stopper, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = ToyData()
    with pytest.warns(UserWarning, match="whatever augmentation"):
        run.fit(Model(), data.train_dataloader(), data.val_dataloader())
    assert callback.stage == 2
    assert run.current_epoch == 4  # two epochs to stop each stage
    assert torch.load(checkpoint.best_model_path, weights_only=True)["epoch"] >= 2


@pytest.mark.parametrize(
    "peer",
    [
        lambda: StochasticWeightAveraging(1e-2),
        lambda: BackboneFinetuning(),
        lambda: ModelPruning("l1_unstructured", amount=0.5),
    ],
    ids=["SWA", "finetuning", "pruning"],
)
def test_callbacks_that_change_the_model_are_refused(tmp_path, peer):
    with pytest.raises(ValueError, match="run the two stages as two fits, with `noisylightning estimate`"):
        trainer(tmp_path, [anchored(1), peer()]).fit(classifier(), ToyData())


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_strategies_are_refused(strategy):
    class Run:
        callbacks = ()

        def __init__(self):
            self.strategy = object.__new__(strategy)

    with pytest.raises(ValueError, match=f"sharded by {strategy.__name__}.*noisylightning estimate"):
        internals.refuse_unsupported(Run())


def test_the_same_callback_twice_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="EstimateTransitionCallback"):
        trainer(tmp_path, [anchored(1), anchored(1)])


def test_no_training_data_is_refused(tmp_path):
    with pytest.raises(Exception, match="train_dataloader"):
        trainer(tmp_path, [anchored(1)]).fit(classifier())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_interruptions_leave_a_checkpoint_to_resume_from(tmp_path):
    class Dies(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    def run(*extra, **options):
        callback, model = anchored(2), classifier()
        every = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        fit = trainer(tmp_path, [callback, *extra, every], max_epochs=5, enable_checkpointing=True)
        try:
            fit.fit(model, ToyData(), **options)
        except (KeyboardInterrupt, SystemExit):
            return None
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    whole = run()
    assert run(Dies()) is None
    assert torch.equal(run(ckpt_path="last", weights_only=True), whole)


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sigterm_leaves_a_checkpoint_to_resume_from(tmp_path, epoch):
    """A scheduler's SIGTERM, in stage one and in stage two, with Lightning's own OnExceptionCheckpoint."""

    class Terminated(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == epoch:
                os.kill(os.getpid(), signal.SIGTERM)

    def run(*extra, **options):
        callback, model = anchored(2), classifier()
        trainer(tmp_path, [callback, *extra], max_epochs=5, **options.pop("trainer", {})).fit(
            model, ToyData(), **options
        )
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    whole = run()
    with pytest.raises(SystemExit):
        run(Terminated(), OnExceptionCheckpoint(tmp_path), trainer={"enable_checkpointing": True})
    assert torch.equal(run(ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True), whole)
