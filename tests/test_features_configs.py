"""The configurations of heads on features: one file for each data set, and all of them the same but for the data.

So one of them stands for all; that they stack with every method and noise follows from test_configs.py, where those set
no key that a network's file sets.
"""

import json
from pathlib import Path

import yaml
from layouts import write_cifar10
from torch import nn

from noisylightning.cli import main
from noisylightning.data import CIFAR10NDataModule
from noisylightning.encoders import Encoder, ImageTransform
from noisylightning.extraction import extract_features

CONFIGS = Path(__file__).parents[1] / "configs"
HEADS = sorted(CONFIGS.glob("*/features_linear.yaml"))


def test_all_heads_are_one_head():
    without_features = {
        "digits",
        "clothing1m",
        "labelme",
        "own_table",
        "methods",
        "noise",
        "estimators",
        "features",
        "training",
    }
    assert {path.parent.name for path in HEADS} == {
        path.name for path in CONFIGS.iterdir() if path.is_dir()
    } - without_features
    assert len({json.dumps(yaml.safe_load(path.read_text())) for path in HEADS}) == 1
    for path in HEADS:
        lines = path.read_text().splitlines()
        assert lines[1].startswith("# noisylightning features --data ")  # how its features are made


def test_a_head_is_run_with_a_hidden_layer_a_set_of_labels_and_a_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["noisylightning"])
    write_cifar10(tmp_path)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    encoder = Encoder(network, "images", ImageTransform(32))
    extract_features(CIFAR10NDataModule(data_dir=tmp_path, verify=False), encoder, "features")
    stack = ("cifar10n/features_linear", "features/mlp", "cifar10n/random1", "methods/forward_known")
    short = [
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--data.batch_size=64",
    ]
    main(["fit", *(f"--config={CONFIGS / name}.yaml" for name in stack), *short])
    (summary,) = tmp_path.glob("lightning_logs/*/summary.json")
    assert all(row["test_accuracy"] is not None for row in json.loads(summary.read_text()))
    config = yaml.safe_load((summary.parent / "config.yaml").read_text())
    assert config["data"]["init_args"]["labels"] == "random1"
    assert config["model"]["init_args"]["backbone"]["init_args"]["hidden"] == [256]
