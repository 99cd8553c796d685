import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from noisylightning.data import AsymmetricNoise, CIFAR10DataModule, CIFAR10NDataModule, CIFAR100DataModule
from noisylightning.data.cifar import read_array_pickle
from noisylightning.data.human import read_human_labels
from noisylightning.transition import CIFAR100_SUPERCLASSES, cifar100_asymmetric

REAL = Path(os.environ.get("NOISYLIGHTNING_DATA", "data"))
needs_cifar = pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason="no cifar-10-batches-py in the folder NOISYLIGHTNING_DATA names"
)


def write_cifar10(root, n=20):
    """Files in the layout of the original, n images each."""
    random = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images = random.integers(0, 256, (n, 3072), dtype=np.uint8)
        content = {b"data": images, b"labels": [i % 10 for i in range(n)], b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_cifar100(root, n=100):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        labels = [i % 100 for i in range(n)]
        content = {b"data": np.zeros((n, 3072), np.uint8), b"fine_labels": labels, b"coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def test_the_original_layout_is_read_and_normalised(tmp_path):
    write_cifar10(tmp_path)
    data = CIFAR10DataModule(data_dir=tmp_path, verify=False, with_index=True)
    data.setup()
    assert data.summary == {"train": 90, "validation": 10, "test": 20}
    images, labels, index = next(iter(data.estimation_dataloader()))
    random = np.random.default_rng(0)
    raw = torch.from_numpy(random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)) / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    torch.testing.assert_close(images[:20], (raw - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert index.tolist() == list(range(100))
    assert labels.tolist() == [i % 10 for i in range(20)] * 5


def test_training_images_are_augmented_unless_told(tmp_path):
    write_cifar10(tmp_path)
    differ = {}
    for augment in (True, False):
        data = CIFAR10DataModule(data_dir=tmp_path, verify=False, with_index=True, augment=augment)
        data.setup("fit")
        plain = next(iter(data.estimation_dataloader()))[0]
        images, _, index = next(iter(data.train_dataloader()))
        differ[augment] = int((images != plain[index]).flatten(1).any(dim=1).sum())
    assert differ[True] > 80
    assert differ[False] == 0


def test_cifar100_flips_within_the_true_superclasses(tmp_path):
    write_cifar100(tmp_path)
    data = CIFAR100DataModule(data_dir=tmp_path, verify=False, noise=AsymmetricNoise(0.4))
    data.setup("fit")
    assert torch.equal(data.transition, cifar100_asymmetric(0.4))
    assert len(data.class_names) == 100
    assert [data.class_names[i] for i in (0, 4, 52, 99)] == ["apple", "beaver", "oak_tree", "worm"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1 is .*it asks for posix.mkdir|nt.mkdir"):
        read_array_pickle(path)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data_batch_1 in .*cifar-10-batches-py: set data_dir"):  # noqa: RUF043
        CIFAR10DataModule(data_dir=tmp_path).setup("fit")


def test_a_file_that_was_not_published_is_named(tmp_path):
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match="data_batch_1 is not the published file, its md5 is"):
        CIFAR10DataModule(data_dir=tmp_path).setup("fit")


@pytest.mark.parametrize("keep", [0, 1, 50, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="data_batch_3 is truncated, corrupt"):
        CIFAR10DataModule(data_dir=tmp_path, verify=False).setup("fit")


@pytest.mark.parametrize("content", [[1, 2], {b"data": np.zeros((2, 3072), np.uint8)}, {b"data": 3, b"labels": [0]}])
def test_a_file_of_something_else_is_named(tmp_path, content):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch (holds a list|does not hold images and labels)"):
        CIFAR10DataModule(data_dir=tmp_path, verify=False).setup("test")


def test_the_human_file_of_cifar10n_is_found_and_checked(tmp_path):
    write_cifar10(tmp_path)
    clean = torch.arange(20).remainder(10).repeat(5)
    human = clean.clone()
    human[:10] = human[:10].roll(1)
    arrays = {"clean_label": clean.numpy(), "worse_label": human.numpy(), "random_label2": clean.numpy()}
    np.savez(tmp_path / "cifar10n.npz", **arrays)
    data = CIFAR10NDataModule(data_dir=tmp_path, verify=False)
    data.setup("fit")
    assert data.noisy_labels.actual_rate == 0.1
    assert torch.equal(data.noisy_labels.labels, human)
    data = CIFAR10NDataModule("random2", data_dir=tmp_path, verify=False)
    data.setup("fit")
    assert data.noisy_labels.actual_rate == 0
    np.savez(tmp_path / "cifar10n.npz", **arrays | {"clean_label": clean.flip(0).numpy()})
    with pytest.raises(
        ValueError, match=r"cifar10n\.npz was made for other data: its 100 clean labels are not the 100"
    ):
        CIFAR10NDataModule(data_dir=tmp_path, verify=False).setup("fit")


def test_the_noise_of_cifar10n_cannot_be_chosen(tmp_path):
    with pytest.raises(TypeError, match="noise"):
        CIFAR10NDataModule(data_dir=tmp_path, noise=AsymmetricNoise(0.1))


@needs_cifar
def test_real_cifar10_has_the_known_class_counts():
    data = CIFAR10DataModule(data_dir=REAL)
    data.setup()
    labels = torch.cat([batch[1] for batch in data.estimation_dataloader()])
    assert torch.bincount(labels).tolist() == [5000] * 10
    assert torch.bincount(data.test_dataloader().dataset.labels).tolist() == [1000] * 10
    mean = torch.stack([batch[0].mean(dim=(0, 2, 3)) for batch in data.estimation_dataloader()]).mean(dim=0)
    assert mean.abs().max() < 0.01


@pytest.mark.skipif(not (REAL / "cifar-100-python").is_dir(), reason="NOISYLIGHTNING_DATA has no cifar-100-python")
def test_real_cifar100_has_the_known_class_counts():
    data = CIFAR100DataModule(data_dir=REAL)
    data.setup()
    labels = torch.cat([batch[1] for batch in data.estimation_dataloader()])
    assert torch.bincount(labels).tolist() == [500] * 100
    assert torch.bincount(data.test_dataloader().dataset.labels).tolist() == [100] * 100


@pytest.mark.skipif(not (REAL / "CIFAR-100_human.pt").is_file(), reason="NOISYLIGHTNING_DATA has no CIFAR-100_human.pt")
def test_the_superclasses_are_those_of_the_published_labels():
    published = read_human_labels(REAL / "CIFAR-100_human.pt")
    names = CIFAR100DataModule.class_names
    five = {}
    for fine, coarse in zip(published["clean_label"].tolist(), published["clean_coarse_label"].tolist(), strict=True):
        five.setdefault(coarse, set()).add(names[fine])
    assert [five[coarse] for coarse in range(20)] == [
        set(CIFAR100_SUPERCLASSES[name]) for name in CIFAR100_SUPERCLASSES
    ]
