"""Every error about a setting names the option that mends it, as Python and as the command spell it."""

import re
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

from noisylightning import data, models

X, Y = np.zeros((20, 3)), np.arange(20) % 2


def arrays(**kwargs):
    module = data.ArrayDataModule(X, Y, **kwargs)
    module.setup()
    return module


def table(folder, **kwargs):
    (folder / "t.csv").write_text("a,kind\n1,yes\n2,no\n")
    module = data.TableDataModule(folder / "t.csv", **kwargs)
    module.setup("fit")
    return module


def texts(folder, **kwargs):
    (folder / "t.csv").write_text("review,stars\ngood,5\nbad,1\n")
    module = data.TextTableDataModule(folder / "t.csv", **kwargs)
    module.setup("fit")
    return module


# What goes wrong, the option that mends it, and the class whose argument that is.
DATA = [
    (lambda _: arrays(val_fraction=2.0), "val_fraction", data.NoisyDataModule),
    (lambda _: arrays(batch_size=0), "batch_size", data.NoisyDataModule),
    (lambda _: arrays(trusted=11), "trusted", data.NoisyDataModule),
    (lambda _: arrays(trusted=[1, 1]), "trusted", data.NoisyDataModule),
    (lambda _: arrays().trusted_dataloader(), "trusted", data.NoisyDataModule),
    (lambda _: arrays().test_dataloader(), "test", data.ArrayDataModule),
    (lambda _: arrays(noisy_labels_file="absent.npz"), "noisy_labels_file", data.NoisyDataModule),
    (lambda _: arrays(noise=data.AsymmetricNoise(0.2)), "noise.flips", data.AsymmetricNoise),
    (lambda _: data.InstanceDependentNoise(2.0), "noise.rate", data.InstanceDependentNoise),
    (lambda _: data.HumanNoise("absent.npz", "k").read(2), "noise.path", data.HumanNoise),
    (table, "label_column", data.TableDataModule),
    (lambda f: table(f, label_column="kind", feature_columns=["b"]), "feature_columns", data.TableDataModule),
    (lambda f: table(f, label_column="kind", class_names=["no", "oui"]), "class_names", data.TableDataModule),
    (lambda f: texts(f, label_column="stars"), "text_column", data.TextTableDataModule),
    (lambda f: texts(f, text_column="review"), "label_column", data.TextTableDataModule),
    (lambda _: data.TextEncoder(length=0), "encoder.length", data.TextEncoder),
    (lambda f: data.MNISTDataModule(f).setup("test"), "data_dir", data.MNISTDataModule),
    (lambda f: data.CIFAR10DataModule(f).setup("test"), "data_dir", data.CIFAR10DataModule),
    (lambda f: data.IMDBDataModule(f).setup("fit"), "data_dir", data.IMDBDataModule),
    (lambda f: data.ImageFolderDataModule(f, size=8, resize=7), "resize", data.image_files.ImageFilesDataModule),
    (lambda f: data.ImageFolderDataModule(f), "labels", data.ImageFolderDataModule),
]
MODELS = [
    (lambda: models.MLP(3, 2)(torch.zeros(1, 4)), "in_features", models.MLP),
    (lambda: models.MLP(3, 2, dropout=1.0), "dropout", models.MLP),
    (lambda: models.CIFARResNet(9, 2), "depth", models.CIFARResNet),
    (lambda: models.CIFARResNet(8, 2, shortcut="C"), "shortcut", models.CIFARResNet),
    (lambda: models.TorchvisionModel("resnet_of_mine", 2), "name", models.TorchvisionModel),
    (lambda: models.TorchvisionModel("resnet18", 2, weights="MINE"), "weights", models.TorchvisionModel),
    (lambda: models.TorchvisionModel("resnet18", 2, weights_file="absent.pt"), "weights_file", models.TorchvisionModel),
    (lambda: models.EmbeddingClassifier(9, 2, dropout=1.0), "dropout", models.EmbeddingClassifier),
    (lambda: models.TransformerClassifier(9, 2, heads=3), "heads", models.TransformerClassifier),
    (
        lambda: models.TransformerClassifier(9, 2, length=2)(torch.zeros(1, 3, dtype=torch.long)),
        "length",
        models.TransformerClassifier,
    ),
]  # fmt: skip


def check(error: str, option: str, owner: type) -> None:
    assert re.search(rf"--{re.escape(option)}\b", error), error
    assert "\n" not in error
    assert option.rpartition(".")[2] in signature(owner).parameters


@pytest.mark.parametrize(("fault", "option", "owner"), DATA)
def test_of_data(fault, option, owner, tmp_path):
    if option.startswith("encoder") or owner is data.TextTableDataModule:
        pytest.importorskip("tokenizers")
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        fault(tmp_path)
    check(str(caught.value), f"data.{option}", owner)


@pytest.mark.parametrize(("fault", "option", "owner"), MODELS)
def test_of_networks(fault, option, owner):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        fault()
    assert issubclass(owner, nn.Module)
    check(str(caught.value), f"model.backbone.{option}", owner)
