import numpy as np
import pytest
import torch

from noisylightning.data import Normalize, SymmetricNoise
from noisylightning.data.arrays import ArrayDataModule

INPUTS = np.arange(120, dtype=np.float64).reshape(40, 3)
LABELS = np.arange(40) % 4


def test_arrays_and_tensors_are_taken_alike():
    batches = []
    for pair in (
        (INPUTS, LABELS),
        (torch.from_numpy(INPUTS), torch.from_numpy(LABELS)),
        (INPUTS.tolist(), LABELS.tolist()),
    ):
        data = ArrayDataModule(train=pair, test=pair, noise=SymmetricNoise(0.5))
        data.setup()
        assert (data.num_classes, data.class_names, data.has_test) == (4, ["0", "1", "2", "3"], True)
        batches.append(next(iter(data.estimation_dataloader())))
    for inputs, labels in batches:
        torch.testing.assert_close(inputs, torch.from_numpy(INPUTS).float())
        assert torch.equal(labels, batches[0][1])


def test_a_file_of_arrays_is_read(tmp_path):
    np.savez(tmp_path / "train.npz", inputs=INPUTS, labels=LABELS)
    data = ArrayDataModule(tmp_path / "train.npz", class_names=["a", "b", "c", "d"])
    data.setup("fit")
    assert next(iter(data.estimation_dataloader()))[0].shape == (40, 3)
    assert not data.has_test


def test_images_come_through_the_transform_given():
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ArrayDataModule((images, LABELS), transform=Normalize([0.0], [1.0]))
    data.setup("fit")
    torch.testing.assert_close(next(iter(data.estimation_dataloader()))[0], images / 255)
    with pytest.raises(ValueError, match="uint8 inputs need a transform"):
        ArrayDataModule((images, LABELS)).setup("fit")


def test_bad_arrays_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "train.npz"
    with pytest.raises(FileNotFoundError, match="no arrays at"):
        ArrayDataModule(path)
    np.savez(path, x=INPUTS, labels=LABELS)
    with pytest.raises(ValueError, match=r"train\.npz has no array 'inputs'"):
        ArrayDataModule(path).setup("fit")
    np.savez(path, inputs=INPUTS, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"train\.npz is truncated"):
        ArrayDataModule(path)
    with pytest.raises(ValueError, match="40 inputs and 39 training labels"):
        ArrayDataModule((INPUTS, LABELS[:-1])).setup("fit")
    with pytest.raises(TypeError, match=r"must be integers in 0\.\.3, got torch\.float64"):
        ArrayDataModule((INPUTS, LABELS.astype(float))).setup("fit")
