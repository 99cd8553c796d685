import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from noisylightning.data import DigitsDataModule, FashionMNISTDataModule, MNISTDataModule

REAL = Path(os.environ.get("NOISYLIGHTNING_DATA", "data"))
needs_mnist = pytest.mark.skipif(
    not (REAL / "MNIST" / "raw").is_dir(), reason="no MNIST/raw in the folder NOISYLIGHTNING_DATA names"
)


def write_idx(path, array, zipped):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_mnist(root, name="MNIST", zipped=True):
    random = np.random.default_rng(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", images, zipped)
        write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10, zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_images_come_normalised_from_plain_and_zipped_files(tmp_path, zipped):
    write_mnist(tmp_path, zipped=zipped)
    data = MNISTDataModule(data_dir=tmp_path)
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    random = np.random.default_rng(0)
    random.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    raw = torch.from_numpy(random.integers(0, 256, (20, 28, 28), dtype=np.uint8))
    expected = ((raw / 255 - 0.1307) / 0.3081).unsqueeze(1)
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert labels.dtype == torch.int64


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set data_dir or NOISYLIGHTNING_DATA .* MNIST/raw") as caught:
        MNISTDataModule(data_dir=tmp_path).setup("fit")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_named(tmp_path, zipped):
    write_mnist(tmp_path, zipped=zipped)
    path = next((tmp_path / "MNIST" / "raw").glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte(.gz)? is truncated"):
        MNISTDataModule(data_dir=tmp_path).setup("fit")


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"<html>not found</html>", b"\x00\x00\x08\x03\x00\x00"])
def test_a_file_of_another_format_is_named(tmp_path, content):
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is"):
        MNISTDataModule(data_dir=tmp_path).setup("fit")


@needs_mnist
def test_real_mnist_has_the_known_class_counts():
    data = MNISTDataModule(data_dir=REAL)
    data.setup()
    labels = torch.cat([batch[1] for batch in data.estimation_dataloader()])
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = torch.cat([batch[1] for batch in data.test_dataloader()])
    assert torch.bincount(test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.summary == {"train": 54_000, "validation": 6_000, "test": 10_000}
    images = next(iter(data.estimation_dataloader()))[0]
    assert images.shape == (128, 1, 28, 28)
    assert abs(images.mean()) < 0.05


@pytest.mark.skipif(not (REAL / "FashionMNIST" / "raw").is_dir(), reason="NOISYLIGHTNING_DATA has no FashionMNIST/raw")
def test_real_fashion_mnist_has_the_known_class_counts():
    data = FashionMNISTDataModule(data_dir=REAL)
    data.setup()
    labels = torch.cat([batch[1] for batch in data.estimation_dataloader()])
    assert torch.bincount(labels).tolist() == [6000] * 10
    test = torch.cat([batch[1] for batch in data.test_dataloader()])
    assert torch.bincount(test).tolist() == [1000] * 10
    images = torch.cat([batch[0] for batch in data.estimation_dataloader()])
    assert abs(images.mean()) < 0.01
    assert images.std() == pytest.approx(1, abs=0.01)


def test_digits_hold_every_image_once():
    data = DigitsDataModule()
    data.setup()
    train = torch.cat([batch[0] for batch in data.estimation_dataloader()])
    test = torch.cat([batch[0] for batch in data.test_dataloader()])
    assert len(train) + len(test) == 1797
    assert len(torch.unique(torch.cat([train, test]).flatten(1), dim=0)) == 1797
    assert 0 <= train.min() < train.max() <= 1
    counts = torch.bincount(torch.cat([batch[1] for batch in data.test_dataloader()]))
    assert counts.min() >= 34
