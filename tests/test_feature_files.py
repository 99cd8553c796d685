"""Folders of features: what is written is read, and what is damaged or of something else is refused."""

import json

import numpy as np
import pytest
import torch

from noisylightning.feature_files import FeatureFolder, Manifest

ASKED = Manifest("timm:resnet18", "aaa", "ImageTransform(size=32)", width=4, data="DigitsDataModule")
ROWS = torch.arange(24.0).view(6, 4) / 7


@pytest.fixture
def begun(tmp_path):
    folder = FeatureFolder.begin(tmp_path / "features", ASKED)
    folder.add("train", rows=6, inputs="bbb")
    folder.write("train", ROWS[:4])
    folder.save()
    return folder


def test_rows_are_half_precision_and_mapped(begun):
    begun.write("train", ROWS[4:])
    begun.update(complete=True)
    read = FeatureFolder(begun.path)
    read.require_complete()
    found = read.features("train")
    assert found.equal(ROWS.half())
    found[0] = 0  # a copy of the page: the file stays as it is
    assert read.features("train").equal(ROWS.half())


def test_what_was_not_saved_is_written_again(begun):
    begun.write("train", ROWS[4:])  # and killed
    again = FeatureFolder.begin(begun.path, ASKED)
    again.add("train", rows=6, inputs="bbb")
    assert again.manifest.parts["train"].done == 4
    with pytest.raises(ValueError, match="half-written, 4 of 6 rows of train: run noisylightning features again"):
        again.require_complete()
    again.write("train", ROWS[4:])
    with pytest.raises(ValueError, match="half-written, without labels"):
        again.require_complete()


@pytest.mark.parametrize(
    ("what", "value"),
    [("encoder", "timm:resnet34"), ("weights", "ccc"), ("transform", "ImageTransform(size=64)"), ("width", 5)],
)
def test_another_encoder_is_refused(begun, what, value):
    asked = Manifest(**{**vars(ASKED), what: value})
    with pytest.raises(ValueError, match=f"holds features of another encoder, timm:resnet18: its {what} is .*--output"):
        FeatureFolder.begin(begun.path, asked)


def test_other_data_is_refused_until_the_file_is_gone(begun):
    with pytest.raises(ValueError, match=r"train.npy holds features of other data, of 6 samples with checksum bbb"):
        begun.add("train", rows=6, inputs="ddd")
    with pytest.raises(ValueError, match="other data"):
        begun.add("train", rows=7, inputs="bbb")
    begun.file("train").unlink()
    begun.add("train", rows=7, inputs="ddd")
    assert begun.manifest.parts["train"].done == 0


def test_values_that_float16_cannot_hold_are_refused(begun):
    with pytest.raises(ValueError, match=r"features as large as 7e\+04, beyond float16's 65,504"):
        begun.write("train", torch.full((1, 4), 7e4))


def test_damage_is_named(begun, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no features in .*absent.*--data.folder"):
        FeatureFolder(tmp_path / "absent")
    whole = begun.file("train").read_bytes()
    begun.file("train").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"train.npy is damaged"):
        begun.features("train")
    np.save(begun.file("train"), np.zeros((5, 4), dtype=np.float16))
    with pytest.raises(ValueError, match=r"holds float16 of shape \(5, 4\), not float16 of \(6, 4\)"):
        begun.features("train")
    begun.file("train").unlink()
    with pytest.raises(ValueError, match=r"train.npy is damaged \(it is missing\)"):
        begun.features("train")
    manifest = begun.path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ValueError, match="is of format 2, and this release reads 1"):
        FeatureFolder(begun.path)
    manifest.write_text("{}")
    with pytest.raises(ValueError, match="is no manifest of features"):
        FeatureFolder(begun.path)
