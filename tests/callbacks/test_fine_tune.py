"""The third phase: the plain loss on trusted samples, after two stages on noisy ones."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from toy import CLASSES, ToyData, adam, anchored, backbone, classifier, trainer

from noisylightning import (
    FineTuneOnTrusted,
    ForwardCorrection,
    NoCorrection,
    NoisyLabelClassifier,
)


class Trusted(ToyData):
    """ToyData with 16 more samples whose labels are right."""

    def __init__(self) -> None:
        super().__init__()
        inputs, clean = self.test.tensors
        self.trusted = TensorDataset(inputs[:16] + 100, clean[:16])  # told apart from all others

    def trusted_train_dataloader(self) -> DataLoader:
        return DataLoader(self.trusted, batch_size=8)


class Spy(Callback):
    """Records what each batch was: trusted or not, and the T that its loss used."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, bool, bool]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        identity = torch.equal(pl_module.correction.transition, torch.eye(CLASSES))
        self.batches.append((trainer.current_epoch, bool(batch[0].mean() > 50), identity))


def three_phases(folder, ckpt_path=None, lr_factor=1.0):
    model, spy = classifier(dropout=0.3, optimizer=adam), Spy()
    every = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1)
    callbacks = [anchored(2), FineTuneOnTrusted(4, lr_factor), spy, every]
    run = trainer(folder, callbacks, max_epochs=6, enable_checkpointing=True)
    torch.manual_seed(0)
    run.fit(model, Trusted(), ckpt_path=ckpt_path, weights_only=True)
    return model, spy, run, callbacks[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return folder, *three_phases(folder, lr_factor=0.1)


def test_trusted_samples_come_last_alone_and_without_t(finished):
    _, _, spy, _, _ = finished
    expected = [(epoch, False, epoch < 2) for epoch in range(4) for _ in range(6)]
    expected += [(epoch, True, True) for epoch in (4, 5) for _ in range(2)]
    assert spy.batches == expected


def test_t_stays_in_the_checkpoints_and_the_model(finished):
    folder, model, _, _, callback = finished
    assert torch.equal(model.correction.transition, callback.transition)
    saved = torch.load(folder / "every" / "epoch=5.ckpt", weights_only=True)["state_dict"]["correction.transition"]
    assert torch.equal(saved, callback.transition)


def test_the_learning_rate_is_scaled(finished):
    _, _, _, run, _ = finished
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.002)


def test_the_phase_is_a_fit_of_its_own_on_the_trusted_set(finished, tmp_path):
    """From stage two's last weights, with a new optimizer; dropout is off here, so that no draw differs."""
    folder = tmp_path
    data = Trusted()
    callbacks = [anchored(2), FineTuneOnTrusted(4)]
    model = classifier()
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer(folder, [*callbacks, every], max_epochs=6, enable_checkpointing=True).fit(model, data)
    alone = classifier(correction=NoCorrection(num_classes=CLASSES))
    alone.load_state_dict(torch.load(folder / "epoch=3.ckpt", weights_only=True)["state_dict"])
    trainer(folder, max_epochs=2).fit(alone, data.trusted_train_dataloader(), data.val_dataloader())
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimate", [True, False])
def test_the_schedule_of_each_phase_spans_it(tmp_path, estimate):
    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *args):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    class Cosine(NoisyLabelClassifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = self.trainer.estimated_stepping_batches
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rates(callbacks, epochs, *data):
        record = Rates()
        model = Cosine(backbone(), ForwardCorrection(torch.eye(CLASSES)))
        trainer(tmp_path, [*callbacks, record], max_epochs=epochs).fit(model, *data)
        return record.seen

    data = Trusted()
    before = [anchored(2)] if estimate else []
    phases = [2, 2] if estimate else [4]
    expected = [rate for epochs in phases for rate in rates([], epochs, data)]
    expected += rates([], 2, data.trusted_train_dataloader(), data.val_dataloader())
    assert rates([*before, FineTuneOnTrusted(4)], 6, data) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_every_phase_resumes_bit_for_bit(finished, tmp_path, epoch):
    folder, whole, *_ = finished
    model, *_ = three_phases(folder, folder / "every" / f"epoch={epoch}.ckpt", lr_factor=0.1)
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("callback", "data", "message"),
    [
        (lambda: FineTuneOnTrusted(0), Trusted, "from_epoch must be at least 1"),
        (lambda: FineTuneOnTrusted(1, 0.0), Trusted, "lr_factor must be positive"),
        (lambda: FineTuneOnTrusted(4), Trusted, "from_epoch = 4 must be below the trainer's max_epochs = 4"),
        (lambda: FineTuneOnTrusted(2), ToyData, r"needs a data module with trusted_train_dataloader\(\)"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, callback, data, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [callback()]).fit(classifier(), data())
