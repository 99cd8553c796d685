import numpy as np
import pytest
import torch
from PIL import Image

from noisylightning.data.huggingface import HuggingFaceDataModule

datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    def split(n):
        images = [Image.new("RGB", (12, 10), (i, i, i)) for i in range(n)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(n)]}, features=features)

    path = tmp_path_factory.mktemp("hf")
    datasets.DatasetDict({"train": split(20), "test": split(4)}).save_to_disk(path)
    return path


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_saved_to_disk_are_read(image_folder, in_memory):
    data = HuggingFaceDataModule(image_folder, size=8, in_memory=in_memory, mean=[0.0] * 3, std=[1.0] * 3)
    assert (data.num_classes, data.class_names) == (2, ["cat", "dog"])
    data.setup()
    assert data.summary == {"train": 18, "validation": 2, "test": 4}
    images, labels = next(iter(data.estimation_dataloader()))
    assert images.shape == (20, 3, 8, 8)
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, torch.arange(20.0))
    assert labels.tolist() == [i % 2 for i in range(20)]


def splits(**columns):
    return {"train": datasets.Dataset.from_dict(columns)}


def test_rows_of_numbers_are_read():
    x = np.arange(40.0).reshape(20, 2)
    data = HuggingFaceDataModule(
        splits(x=x, y=[["b", "a"][i % 2] for i in range(20)]), test_split=None, input_column="x", label_column="y"
    )
    assert (data.class_names, data.has_test) == (["a", "b"], False)
    data.setup("fit")
    inputs, labels = next(iter(data.estimation_dataloader()))
    torch.testing.assert_close(inputs, torch.from_numpy(x).float())
    assert labels.tolist() == [1 - i % 2 for i in range(20)]


def test_what_is_missing_is_named(image_folder):
    with pytest.raises(ValueError, match=r"no split 'training' \(it has train, test\)"):
        HuggingFaceDataModule(image_folder, train_split="training")
    with pytest.raises(ValueError, match=r"split 'train' has no column 'img' \(it has image, label\)"):
        HuggingFaceDataModule(image_folder, input_column="img")
    with pytest.raises(ValueError, match="row 1 of the split 'train' has the label None"):
        HuggingFaceDataModule(splits(image=[1, 2, 3], label=["a", None, "b"]), test_split=None).setup("fit")
    rows = splits(image=[1, 2], label=["a", "b"])
    rows["test"] = splits(image=[1], label=["c"])["train"]
    with pytest.raises(ValueError, match="row 0 of the split 'test' has the label 'c'"):
        HuggingFaceDataModule(rows).prepare_data()
    with pytest.raises(ValueError, match="the column 'image' of the split 'train' holds neither images nor"):
        HuggingFaceDataModule(splits(image=["a", "b"], label=["a", "b"]), test_split=None).setup("fit")
