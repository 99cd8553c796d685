"""The command features, and a fit on what it leaves."""

import json
from pathlib import Path

import pytest
from torch import nn

from noisylightning.cli import main
from noisylightning.encoders import Encoder, ImageTransform

ROOT = Path(__file__).parents[2]
STACK = [f"--config={ROOT}/configs/{name}.yaml" for name in ("mnist/features_linear", "noise/symmetric_0.2")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def cells() -> Encoder:
    """An encoder of one's own: the brightness of each of 8 by 8 cells."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())
    return Encoder(network, "images", ImageTransform(8), name="cells")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["noisylightning"])  # Lightning warns of arguments given twice


def test_features_are_made_once_and_trained_on(caplog):
    caplog.set_level("INFO")
    main(["features", "--data=DigitsDataModule", "--encoder=test_features_command.cells", "--output=made"])
    assert "1,437 train, 360 test: 192 features each by cells, left in made." in caplog.text
    short = ["--data.folder=made", "--trainer.max_epochs=8", "--model.optimizer.lr=0.01", "--trainer.accelerator=cpu"]
    main(["fit", *STACK, f"--config={ROOT}/configs/features/mlp.yaml", *short, "--trainer.enable_progress_bar=false"])
    (summary,) = Path("lightning_logs").glob("*/summary.json")
    assert max(row["test_accuracy"] for row in json.loads(summary.read_text())) > 0.85

    manifest = json.loads(Path("made/manifest.json").read_text())
    manifest["parts"]["train"]["done"] = 640
    Path("made/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="made is half-written, 640 of 1,437 rows of train: run noisylightning feat"):
        main(["fit", *STACK, *short])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--data=DigitsDataModule"], "features needs --data and --encoder, one of efficientnet_lite0, minilm"),
        (["--data=DigitsDataModule", "--encoder=torch.nn.Identity"], r"gives shape \(2, 1, 8, 8\) for 2 samples"),
        (["--data=DigitsDataModule", "--encoder=torch.nn.Flatten", "--view=2"], "did you mean --views"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, part):
    with pytest.raises(SystemExit, match=part) as stopped:
        main(["features", *arguments, "--output=made"])
    assert str(stopped.value).startswith("noisylightning: ")
    assert not Path("made").exists()


def test_help_tells_the_encoders(capsys):
    with pytest.raises(SystemExit):
        main(["features", "--encoder.help"])
    said = capsys.readouterr().out
    assert all(way in said for way in ("timm:NAME", "sentence-transformers:NAME", "FILE.onnx", "package.module.name"))
