"""Every data module and every noise can be named in YAML, with the arguments of its base classes."""

import inspect

import pytest
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule

import noisylightning.data
from noisylightning.data import DatasetDataModule, LabelNoise, NoisyDataModule
from noisylightning.data.image_files import ImageFilesDataModule
from noisylightning.data.text import NoisyTextDataModule

PUBLIC = [getattr(noisylightning.data, name) for name in noisylightning.data.__all__]
NOT_NAMED = (NoisyDataModule, NoisyTextDataModule, ImageFilesDataModule, DatasetDataModule)  # the last takes objects
MODULES = [c for c in PUBLIC if inspect.isclass(c) and issubclass(c, NoisyDataModule) and c not in NOT_NAMED]
NEEDED = {  # arguments without default
    "ArrayDataModule": {"train": "a.npz"},
    "Clothing1MDataModule": {"root": "a"},
    "CIFAR10NDataModule": {"labels": "aggre"},
    "CrowdDataModule": {"train": "a.npz"},
    "FeaturesDataModule": {"folder": "a"},
    "HuggingFaceDataModule": {"dataset": "a"},
    "ImageFolderDataModule": {"root": "a", "labels": "a.csv"},
    "ImageListDataModule": {"root": "a", "train_list": "a.txt", "class_names": "b.txt"},
    "TableDataModule": {"train_file": "a.csv"},
    "TextTableDataModule": {"train_file": "a.csv", "test_file": "b.csv", "class_names": ["a", "b"]},
    "WrappedDataModule": {"datamodule": {"class_path": "DigitsDataModule"}, "num_classes": 10},
}
NOISES = {
    "SymmetricNoise": {"rate": 0.2},
    "PairFlipNoise": {"rate": 0.2},
    "AsymmetricNoise": {"rate": 0.2, "flips": {0: 1, 2: {3: 1.0}}},
    "InstanceDependentNoise": {"rate": 0.2},
    "TransitionNoise": {"transition": "t.npy"},
    "HumanNoise": {"path": "h.npz", "key": "worse_label"},
    "ConfusionNoise": {"path": "h.npz", "key": "worse_label"},
}
SHARED = {"batch_size": 64, "val_fraction": 0.2, "noise_seed": 3, "seed": 1, "noisy_labels_file": "m.npz", "trusted": 5}


def test_every_noise_is_listed():
    kinds = [c for c in PUBLIC if inspect.isclass(c) and issubclass(c, LabelNoise) and c is not LabelNoise]
    assert {kind.__name__ for kind in kinds} == set(NOISES)


@pytest.mark.parametrize("noise", NOISES)
def test_a_noise_by_name(noise):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    given = {"class_path": noise, "init_args": NOISES[noise]}
    found = parser.parse_object({"data": {"class_path": "DigitsDataModule", "init_args": {"noise": given}}})
    assert found.data.init_args.noise.class_path == f"noisylightning.data.{noise}"
    assert found.data.init_args.noise.init_args.as_dict().items() >= NOISES[noise].items()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_data_module_by_name_with_shared_arguments(module):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    arguments = NEEDED.get(module.__name__, {}) | SHARED
    found = parser.parse_object({"data": {"class_path": module.__name__, "init_args": arguments}})
    for name, value in SHARED.items():
        assert found.data.init_args[name] == value
