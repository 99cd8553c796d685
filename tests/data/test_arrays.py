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


def test_inputs_and_labels_are_taken_one_after_the_other():
    data = ArrayDataModule(INPUTS, LABELS, test=(INPUTS, LABELS))
    data.setup()
    assert (data.num_classes, data.num_features) == (4, 3)
    assert torch.equal(next(iter(data.estimation_dataloader()))[1], torch.from_numpy(LABELS))
    with pytest.raises(ValueError, match=r"train is a ndarray without labels: give the labels after it, or a pair"):
        ArrayDataModule(INPUTS)
    with pytest.raises(ValueError, match=r"test is a ndarray without labels: give a pair, test=\(inputs, labels\)"):
        ArrayDataModule(INPUTS, LABELS, test=INPUTS).setup("test")
    with pytest.raises(ValueError, match=r"a pair of inputs and labels, and labels beside it: .*test=\(inputs, labels"):
        ArrayDataModule((np.zeros((4, 2)), np.arange(4)), (np.zeros((4, 2)), np.arange(4)))
    with pytest.raises(ValueError, match=r"has no arrays to train: give train \(--data\.train\)"):
        ArrayDataModule(test=(INPUTS, LABELS))


NAMES = np.array(["b", "a", "c", "a"] * 10)


@pytest.mark.parametrize("labels", [NAMES, NAMES.astype(object), NAMES.tolist()], ids=["str", "object", "list"])
def test_labels_may_be_names(labels):
    data = ArrayDataModule(INPUTS, labels)
    assert data.class_names == ["a", "b", "c"]
    data.setup("fit")
    assert next(iter(data.estimation_dataloader()))[1].tolist() == [1, 0, 2, 0] * 10
    data = ArrayDataModule(INPUTS, labels, class_names=["c", "b", "a"])
    data.setup("fit")
    assert next(iter(data.estimation_dataloader()))[1].tolist() == [1, 2, 0, 2] * 10
    with pytest.raises(ValueError, match=r"has the label 'c', not among the classes a, b; .*--data\.class_names"):
        ArrayDataModule(INPUTS, labels, class_names=["a", "b"]).setup("fit")


def test_what_is_missing_among_names_is_named():
    labels = NAMES.astype(object)
    for missing in (None, float("nan")):
        labels[7] = missing
        with pytest.raises(ValueError, match=rf"has {missing} at sample 7: give a class name"):
            ArrayDataModule(INPUTS, labels)


def test_pandas_frames_are_taken_by_position():
    pd = pytest.importorskip("pandas")
    order = np.random.default_rng(0).permutation(40)
    frame = pd.DataFrame(INPUTS, columns=list("xyz"), index=order + 8)
    for labels, expected in (
        (pd.Series(LABELS, index=order + 8), LABELS),
        (pd.Series(NAMES, index=order + 8), np.array([1, 0, 2, 0] * 10)),
        (pd.Series(NAMES, index=order + 8, dtype="category"), np.array([1, 0, 2, 0] * 10)),
    ):
        data = ArrayDataModule(frame, labels, test=(frame, labels))
        data.setup()
        for loader in (data.estimation_dataloader(), data.test_dataloader()):
            inputs, found = next(iter(loader))
            torch.testing.assert_close(inputs, torch.from_numpy(INPUTS).float())
            assert found.tolist() == expected.tolist()
    with pytest.raises(TypeError, match="inputs to train must be numbers, got object"):
        ArrayDataModule(frame.assign(x=["one"] * 40), LABELS).setup("fit")


def test_inputs_without_labels_are_predicted(tmp_path):
    np.savez(tmp_path / "new.npz", inputs=INPUTS)
    for predict in (INPUTS, tmp_path / "new.npz"):
        data = ArrayDataModule(predict=predict, class_names=["a", "b"])
        data.setup("predict")
        inputs, labels = next(iter(data.predict_dataloader()))
        torch.testing.assert_close(inputs, torch.from_numpy(INPUTS).float())
        assert labels.tolist() == [-1] * 40
    data = ArrayDataModule(INPUTS, LABELS)
    data.setup("predict")
    with pytest.raises(ValueError, match=r"was given no test set: set test \(--data\.test\)"):
        data.predict_dataloader()
