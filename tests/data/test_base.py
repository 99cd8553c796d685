import os
from pathlib import Path

import pytest
import torch
import torch.distributed
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn

from noisylightning.data import AsymmetricNoise, DigitsDataModule, NoisyDataModule, NoisyLabels, SymmetricNoise
from noisylightning.transition import mnist_asymmetric, symmetric


class Numbers(NoisyDataModule):
    """Sample i is the number i, so that a batch tells which samples it holds."""

    def __init__(self, n=103, train_labels=None, **kwargs):
        super().__init__(**kwargs)
        self.n, self.train_labels = n, train_labels
        self.num_classes, self.class_names = 4, list("abcd")

    def load_train(self):
        labels = torch.arange(self.n) % 4 if self.train_labels is None else self.train_labels
        return torch.arange(self.n, dtype=torch.float32), labels

    def load_test(self):
        return torch.arange(20.0), torch.arange(20) % 4


class NumbersInWorkers(Numbers):
    """The same, read by a worker process from something that is no tensor."""

    def load_train(self):
        inputs, labels = super().load_train()
        return Wrapped(inputs), labels


class Wrapped:
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Shift:
    """Adds 1000 and its draw."""

    num_draws = 1

    def __call__(self, inputs, draws):
        return inputs.double() + 1000 + draws[:, 0]


class Recorder(LightningModule):
    """Trains on numbers and keeps the samples of every training epoch, in order."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 4)
        self.epochs = {}

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        self.epochs.setdefault(self.current_epoch, []).extend(inputs.int().tolist())
        return nn.functional.cross_entropy(self.layer(inputs.unsqueeze(1) / 100), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        return batch[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **kwargs):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings["enable_checkpointing"] = False
    return Trainer(default_root_dir=tmp_path, **settings, **kwargs)


def everything(loader):
    return torch.cat([batch[0] for batch in loader]), torch.cat([batch[1] for batch in loader])


def set_up(**kwargs):
    data = Numbers(**kwargs)
    data.setup()
    return data


def test_train_and_validation_share_the_samples_and_one_draw():
    data = set_up(noise=SymmetricNoise(0.5))
    train_inputs, train_labels = everything(data.train_dataloader())
    val_inputs, val_labels = everything(data.val_dataloader())
    assert sorted(torch.cat([train_inputs, val_inputs]).tolist()) == list(range(103))
    assert len(val_inputs) == 10
    noisy = NoisyLabels.draw(SymmetricNoise(0.5), torch.arange(103) % 4, 4, seed=0).labels
    assert torch.equal(train_labels, noisy[train_inputs.long()])
    assert torch.equal(val_labels, noisy[val_inputs.long()])


def test_the_estimation_loader_goes_through_all_in_order_with_noisy_labels():
    data = set_up(noise=SymmetricNoise(0.5), with_index=True)
    inputs, labels = everything(data.estimation_dataloader())
    index = torch.cat([batch[2] for batch in data.estimation_dataloader()])
    assert inputs.tolist() == index.tolist() == list(range(103))
    assert torch.equal(labels, data.noisy_labels.labels)


def test_augmentation_is_for_training_batches_only():
    data = set_up(batch_size=16)
    data.augmentation = Shift()
    assert everything(data.train_dataloader())[0].min() >= 1000
    for loader in (data.val_dataloader(), data.test_dataloader(), data.estimation_dataloader()):
        assert everything(loader)[0].max() < 1000


def test_augmentation_depends_on_seed_epoch_and_sample_alone():
    def draws(epoch, data_module=Numbers, **kwargs):
        data = data_module(**kwargs)
        data.setup()
        data.augmentation = Shift()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found = everything(loader)[0] - 1000
        return {int(value): float(value) for value in found}

    first = draws(3)
    assert draws(3, batch_size=5) == first
    assert draws(3, NumbersInWorkers, num_workers=1) == first
    assert draws(4) != first
    assert draws(3, seed=1) != first
    assert len({value % 1 for value in first.values()}) == len(first)


def test_the_test_set_is_untouched():
    data = set_up(noise=SymmetricNoise(1.0))
    inputs, labels = everything(data.test_dataloader())
    assert torch.equal(labels, inputs.long() % 4)
    assert len(data.predict_dataloader().dataset) == 20


def test_noise_and_split_do_not_depend_on_batches_and_order():
    first = set_up(noise=SymmetricNoise(0.5))
    other = set_up(noise=SymmetricNoise(0.5), batch_size=7, seed=5)
    assert torch.equal(first.noisy_labels.labels, other.noisy_labels.labels)
    assert not torch.equal(first.val_index, other.val_index)
    other = set_up(noise=SymmetricNoise(0.5), noise_seed=1)
    assert not torch.equal(first.noisy_labels.labels, other.noisy_labels.labels)
    assert torch.equal(first.val_index, other.val_index)


def test_setup_is_done_once():
    data = set_up(noise=SymmetricNoise(0.5))
    noisy = data.noisy_labels
    data.setup("fit")
    data.setup("test")
    assert data.noisy_labels is noisy


def test_the_summary_says_sizes_and_rates():
    data = set_up(n=2000, noise=SymmetricNoise(0.4))
    assert data.summary["train"] == 1800
    assert data.summary["validation"] == 200
    assert data.summary["test"] == 20
    assert data.summary["requested_rate"] == 0.4
    assert data.summary["actual_rate"] == pytest.approx(0.4, abs=0.05)
    assert torch.equal(data.summary["transition"], symmetric(4, 0.4))
    assert torch.equal(data.transition, symmetric(4, 0.4))


def test_one_line_says_sizes_and_rates(caplog):
    with caplog.at_level("INFO"):
        data = set_up(n=2000, noise=SymmetricNoise(0.4), noise_seed=3, trusted=[7])
    (line,) = [record.getMessage() for record in caplog.records if "Numbers" in record.getMessage()]
    rate = f"{data.summary['actual_rate']:.2%}"
    sizes = f"{data.summary['train']:,} samples to train, {data.summary['validation']} to validate, 1 trusted"
    assert line == f"Numbers: {sizes}; {rate} of the labels are wrong, 40.00% asked for (seed 3)."


def test_data_in_memory_is_not_advised_to_take_workers(tmp_path, monkeypatch):
    connector = "pytorch_lightning.trainer.connectors.data_connector.suggested_max_num_workers"
    monkeypatch.setattr(connector, lambda num_devices: 8)
    trainer(tmp_path, max_epochs=1).fit(Recorder(), Numbers(num_workers=3))


def test_predictions_are_of_the_test_samples_in_order(tmp_path):
    batches = trainer(tmp_path).predict(Recorder(), Numbers(batch_size=8))
    assert torch.cat(batches).tolist() == list(range(20))


def test_without_noise_the_labels_stay_and_nothing_is_said_of_them():
    data = set_up()
    assert data.transition is None
    assert set(data.summary) == {"train", "validation", "test"}
    inputs, labels = everything(data.estimation_dataloader())
    assert torch.equal(labels, inputs.long() % 4)


@pytest.mark.parametrize("trusted", [5, [0, 50, 102]])
def test_trusted_samples_keep_their_labels_and_leave_the_noisy_parts(trusted):
    data = set_up(noise=SymmetricNoise(1.0), trusted=trusted)
    inputs, labels = everything(data.trusted_dataloader())
    assert torch.equal(labels, inputs.long() % 4)
    chosen = set(inputs.tolist())
    if isinstance(trusted, int):
        assert torch.bincount(labels).tolist() == [5] * 4
    else:
        assert chosen == set(trusted)
    assert data.summary["trusted"] == len(chosen)
    parts = [everything(loader)[0].tolist() for loader in (data.train_dataloader(), data.val_dataloader())]
    assert sorted([*chosen, *parts[0], *parts[1]]) == list(range(103))
    assert not chosen & set(everything(data.estimation_dataloader())[0].tolist())
    again = everything(data.trusted_train_dataloader())[0].tolist()
    assert set(again) == chosen
    assert again != inputs.tolist() or len(chosen) < 5
    # the noise does not depend on the choice
    assert torch.equal(data.noisy_labels.labels, set_up(noise=SymmetricNoise(1.0)).noisy_labels.labels)


class TrustedApart(Numbers):
    def load_trusted(self):
        return torch.arange(1000.0, 1008.0), torch.arange(8) % 4


def test_a_trusted_set_of_its_own_leaves_the_noisy_parts_whole():
    data = TrustedApart(noise=SymmetricNoise(1.0))
    data.setup()
    inputs, labels = everything(data.trusted_dataloader())
    assert inputs.tolist() == list(range(1000, 1008))
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert data.summary["trusted"] == 8
    assert data.summary["train"] + data.summary["validation"] == 103
    with pytest.raises(ValueError, match="TrustedApart has a trusted set of its own, so trusted=2 cannot"):
        TrustedApart(trusted=2).setup()


def test_what_was_not_given_is_not_served():
    with pytest.raises(ValueError, match="Numbers has no trusted samples: give trusted"):
        set_up().trusted_dataloader()
    with pytest.raises(RuntimeError, match="not set up for this yet"):
        Numbers().train_dataloader()
    data = Numbers()
    data.has_test = False
    data.setup()
    with pytest.raises(ValueError, match="Numbers was given no test set"):
        data.test_dataloader()


def test_asymmetric_noise_takes_the_map_of_the_data():
    data = DigitsDataModule(noise=AsymmetricNoise(0.6))
    data.setup("fit")
    assert torch.equal(data.transition, mnist_asymmetric(0.6))
    with pytest.raises(ValueError, match="Numbers has no flips of its own"):
        set_up(noise=AsymmetricNoise(0.6))


def test_noisy_labels_are_written_and_read(tmp_path):
    path = tmp_path / "noise.npz"
    first = set_up(noise=SymmetricNoise(0.5), noise_seed=3, noisy_labels_file=path)
    again = set_up(noisy_labels_file=path)
    assert torch.equal(again.noisy_labels.labels, first.noisy_labels.labels)
    assert torch.equal(again.transition, first.transition)
    set_up(noise=SymmetricNoise(0.5), noise_seed=3, noisy_labels_file=path)
    with pytest.raises(ValueError, match=r"SymmetricNoise\(rate=0.5\) and not by the"):
        set_up(noise=SymmetricNoise(0.4), noise_seed=3, noisy_labels_file=path)
    with pytest.raises(ValueError, match="noise seed 3, not 4"):
        set_up(noise=SymmetricNoise(0.5), noise_seed=4, noisy_labels_file=path)
    with pytest.raises(ValueError, match="made for other data"):
        set_up(n=104, noisy_labels_file=path)
    with pytest.raises(FileNotFoundError, match="no noisy labels"):
        set_up(noisy_labels_file=tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, got 0.0"),
        ({"val_fraction": 0.001}, "103 samples, 0 of them trusted, leave 103 to train, 0 to validate"),
        ({"trusted": 25}, "trusted=25 of each class cannot be drawn, the smallest class has 25 samples"),
        ({"trusted": 0}, "trusted=0 of each class cannot be drawn"),
        ({"trusted": [3, 103]}, r"trusted must name samples in 0..102, each once, got 103: correct"),
        ({"trusted": [3, 3]}, "each once, got one twice"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"train_labels": torch.arange(103) % 5}, "Numbers's training labels must lie in 0..3, got 4 at sample 4"),
        ({"train_labels": torch.arange(103) % 3}, "no sample of class 3"),
        ({"train_labels": torch.arange(100) % 4}, "103 inputs and 100 training labels"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        set_up(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_sees_the_order_of_one_that_never_stopped(tmp_path, num_workers):
    def data():
        return NumbersInWorkers(n=31, batch_size=8, num_workers=num_workers)

    whole = Recorder()
    trainer(tmp_path, max_epochs=4).fit(whole, data())
    assert len({tuple(order) for order in whole.epochs.values()}) == 4

    half = trainer(tmp_path, max_epochs=2)
    half.fit(Recorder(), data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Recorder()
    trainer(tmp_path, max_epochs=4).fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed.epochs == {epoch: whole.epochs[epoch] for epoch in (2, 3)}


def test_reading_leaves_the_global_stream_alone():
    data = set_up()
    before = torch.get_rng_state()
    for _ in data.train_dataloader():
        pass
    assert torch.equal(torch.get_rng_state(), before)


class Gather(Callback):
    """Lets rank 0 write what every rank saw."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        seen = [None] * trainer.world_size
        labels = trainer.datamodule.noisy_labels.labels
        torch.distributed.all_gather_object(seen, (pl_module.epochs, labels))
        if trainer.is_global_zero:
            torch.save(seen, self.path)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_share_the_epoch_and_draw_the_same_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    # the spawned processes import this file by name
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    run = trainer(tmp_path, max_epochs=3, devices=2, strategy="ddp_spawn", callbacks=[Gather(tmp_path / "seen.pt")])
    data = Numbers(n=45, batch_size=8, noise=SymmetricNoise(0.5), noisy_labels_file=tmp_path / "noise.npz")
    run.fit(Recorder(), data)
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    (first, first_labels), (second, second_labels) = seen
    assert torch.equal(first_labels, second_labels)
    train = set_up(n=45).train_index.tolist()
    for epoch in range(3):
        assert len(first[epoch]) == len(second[epoch]) == 21  # 41 samples, padded by one
        assert set(first[epoch]) | set(second[epoch]) == set(train)
    assert first[0] != first[1] != first[2]
    assert (tmp_path / "noise.npz").exists()
