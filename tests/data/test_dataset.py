import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from noisylightning.data import NoisyLabels, SymmetricNoise
from noisylightning.data.dataset import DatasetDataModule, WrappedDataModule, labels_of

LABELS = torch.arange(60) % 3


class Counting(Dataset):
    """Sample i is the number i; counts how often inputs are read."""

    def __init__(self, n=60, shift=0.0):
        self.n, self.shift, self.reads = n, shift, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return torch.tensor(float(i)) + self.shift, i % 3


class WithTargets(Counting):
    """As torchvision's data sets are."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.targets = [i % 3 for i in range(self.n)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def test_labels_are_found_without_reading_inputs_where_that_can_be():
    dataset = WithTargets()
    assert torch.equal(labels_of(dataset), LABELS)
    assert torch.equal(labels_of(Subset(dataset, [5, 1])), torch.tensor([2, 1]))
    assert torch.equal(labels_of(ConcatDataset([dataset, dataset])), LABELS.repeat(2))
    assert dataset.reads == 0
    assert torch.equal(labels_of(Counting()), LABELS)
    dataset.target_transform = lambda label: label
    assert torch.equal(labels_of(dataset), LABELS)
    assert dataset.reads == 60


def test_any_map_style_data_set_gets_noise():
    data = DatasetDataModule(Counting(), num_classes=3, test=Counting(6), noise=SymmetricNoise(0.5))
    data.setup()
    inputs, labels = next(iter(data.estimation_dataloader()))
    assert inputs.tolist() == list(range(60))
    assert torch.equal(labels, NoisyLabels.draw(SymmetricNoise(0.5), LABELS, 3, seed=0).labels)
    inputs, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [0, 1, 2] * 2


def test_validation_and_estimation_read_the_plain_samples():
    data = DatasetDataModule(Counting(shift=1000.0), 3, plain=Counting())
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[0].min() >= 1000
    assert next(iter(data.val_dataloader()))[0].max() < 1000
    assert next(iter(data.estimation_dataloader()))[0].max() < 1000


def test_plain_must_be_the_same_samples_and_chance_is_warned_of():
    with pytest.raises(ValueError, match="plain has other labels than train"):
        DatasetDataModule(Counting(), 3, plain=Counting(57)).setup("fit")
    dataset = WithTargets()
    dataset.transform = "Compose(RandomCrop())"
    with pytest.warns(UserWarning, match="WithTargets varies its inputs at random"):
        DatasetDataModule(dataset, 3).setup("fit")


def test_a_data_set_without_places_is_refused():
    with pytest.raises(TypeError, match="which Stream does not give"):
        DatasetDataModule(Stream(), 3).setup("fit")


class Foreign(LightningDataModule):
    """Somebody else's data module."""

    def __init__(self, train=None):
        super().__init__()
        self.calls = []
        self.train = DataLoader(WithTargets(), batch_size=4) if train is None else train

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)

    def train_dataloader(self):
        return self.train

    def test_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(6), torch.arange(6) % 3), batch_size=2)


class ForeignWithVal(Foreign):
    def val_dataloader(self):
        return DataLoader(Counting(9, shift=1000.0), batch_size=4)


def test_any_data_module_gets_noise():
    data = WrappedDataModule(Foreign(), num_classes=3, noise=SymmetricNoise(0.5))
    data.prepare_data()
    data.setup()
    assert data.datamodule.calls == ["prepare", "fit", "test"]
    assert data.summary["train"] == 54
    assert data.has_test
    assert torch.equal(next(iter(data.test_dataloader()))[1], torch.arange(6) % 3)


def test_its_own_validation_set_stays_one_and_shares_the_draw():
    data = WrappedDataModule(ForeignWithVal(), num_classes=3, noise=SymmetricNoise(0.5))
    data.setup("fit")
    assert (data.summary["train"], data.summary["validation"]) == (60, 9)
    clean = torch.cat([LABELS, torch.arange(9) % 3])
    noisy = NoisyLabels.draw(SymmetricNoise(0.5), clean, 3, seed=0).labels
    inputs, labels = next(iter(data.val_dataloader()))
    assert inputs.tolist() == list(range(1000, 1009))
    assert torch.equal(labels, noisy[60:])
    assert len(data.estimation_dataloader().dataset) == 69


def test_a_data_module_made_of_data_sets_gets_noise():
    other = LightningDataModule.from_datasets(WithTargets(), WithTargets(n=9), WithTargets(n=6), num_workers=0)
    data = WrappedDataModule(other, num_classes=3)
    data.setup()
    assert data.summary == {"train": 60, "validation": 9, "test": 6}
    other = LightningDataModule.from_datasets(WithTargets(), num_workers=0)
    assert not WrappedDataModule(other, num_classes=3).has_test


@pytest.mark.parametrize("train", [[1, 2], {"a": 1}, DataLoader(Stream())])
def test_a_data_module_of_other_loaders_is_refused(train):
    with pytest.raises(TypeError, match=r"train_dataloader\(\) gives a|which Stream does not give"):
        WrappedDataModule(Foreign(train), num_classes=3).setup("fit")
