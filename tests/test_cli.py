"""The command, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from noisylightning import NoisyLabelClassifier
from noisylightning.cli import main

ROOT = Path(__file__).parents[1]
TWO_EPOCHS = ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]


# Of the command in this process only its own warnings are ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def noisylightning(*arguments, cwd) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "noisylightning", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Run the command in this process, which saves its seconds of imports, and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One real fit of the embedded digits, which the other tests look at."""
    folder = tmp_path_factory.mktemp("digits")
    config = ROOT / "configs/digits/forward_estimated.yaml"
    done = noisylightning("fit", "--config", config, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def log_dir(folder: Path) -> Path:
    return next((folder / "lightning_logs").iterdir())


def test_fit_says_what_happens_and_closes_with_a_table(finished):
    said = (finished / "stderr").read_text()
    assert said.index("Stage one: ") < said.index("T estimated (") < said.index("Stage two: ")
    table = (finished / "stdout").read_text()
    for part in ("stage 1, best", "stage 2, selected", "stage 2, last", "noisy val", "clean test", "T error"):
        assert part in table
    assert str(log_dir(finished)) in table


def test_fit_improves_the_clean_test_accuracy(finished):
    rows = {row["weights"]: row for row in json.loads((log_dir(finished) / "summary.json").read_text())}
    assert rows["stage 2, last"]["test_accuracy"] > rows["stage 1, best"]["test_accuracy"]
    assert rows["stage 1, best"]["loss"] == "CrossEntropy"
    assert rows["stage 2, last"]["loss"] == "ForwardCorrection"
    assert rows["stage 2, last"]["transition_error"] < 0.15
    assert rows["stage 1, best"]["transition_error"] is None
    assert rows["stage 1, best"]["epoch"] < 20 <= rows["stage 2, selected"]["epoch"] <= rows["stage 2, last"]["epoch"]


def test_fit_leaves_the_estimate_and_checkpoints_that_load_safely(finished):
    folder = log_dir(finished)
    transition = np.load(folder / "transition.npy", allow_pickle=False)
    assert (folder / "transition.png").exists()
    last = folder / "checkpoints" / "last.ckpt"
    model = NoisyLabelClassifier.load_from_checkpoint(last, weights_only=True)
    np.testing.assert_array_equal(model.correction.transition.numpy(), transition)
    assert torch.load(folder / "stage_one.ckpt", weights_only=True)["state_dict"]


def test_test_and_predict_take_a_checkpoint_without_the_callback(finished, tmp_path, run_here):
    config = yaml.safe_load((ROOT / "configs/digits/forward_estimated.yaml").read_text())
    config["trainer"]["callbacks"] = []
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(config))
    last = log_dir(finished) / "checkpoints" / "last.ckpt"
    tested = run_here("test", "--config", tmp_path / "plain.yaml", "--ckpt_path", last)
    rows = {row["weights"]: row for row in json.loads((log_dir(finished) / "summary.json").read_text())}
    assert f"{rows['stage 2, last']['test_accuracy']:.4f}"[:5] in tested
    run_here("predict", "--config", tmp_path / "plain.yaml", "--ckpt_path", last)
    run_here("validate", "--config", tmp_path / "plain.yaml", "--ckpt_path", last)


@pytest.mark.parametrize("name", ["cross_entropy", "forward_known", "forward_estimated", "backward_estimated"])
def test_digits_configurations_run(name, tmp_path, run_here):
    config = ROOT / "configs" / "digits" / f"{name}.yaml"
    estimated = "estimated" in name
    epochs = ["--trainer.max_epochs=2"]
    if estimated:
        content = config.read_text().replace("stage_one_epochs: 20", "stage_one_epochs: 1")
        config = tmp_path / config.name
        config.write_text(content)
    run_here("fit", "--config", config, *epochs, *TWO_EPOCHS)
    rows = json.loads((log_dir(tmp_path) / "summary.json").read_text())
    assert len(rows) == (3 if estimated else 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.nose=3"], "Option 'nose' is not accepted"),
        (["--trainer.max_epoch=3"], "max_epoch"),
        (["--model.backbone.init_args.hiden=3"], "hiden"),
        (["--data.batch_size=0"], "batch_size must be at least 1, got 0"),
        (["--trainer.max_epochs=20"], "stage_one_epochs = 20 must be below the trainer's max_epochs = 20"),
        (["--data=MNISTDataModule", "--data.data_dir=/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_argument_is_answered_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(ROOT / "configs/digits/forward_estimated.yaml"), *arguments])
    sentence = str(stopped.value)
    assert sentence.startswith("noisylightning: ")
    assert message in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("image", "03.png is corrupt or no image"),
        ("noisy labels", "noise.npz is not a file of noisy labels"),
        ("table", "labels.csv is not UTF-8"),
        ("test table", "checked.csv, line 6, has the label 'bird', not among the classes cat, dog"),
    ],
)
def test_a_fault_in_a_users_files_is_answered_in_one_sentence(fault, message, tmp_path, monkeypatch):
    """Also where the error began in a library: the sentence then stands for the library's."""
    monkeypatch.chdir(tmp_path)
    names = [f"{i:02}.png" for i in range(20)]
    for name in names:
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    table = "\n".join(["image,label", *(f"{name},{'cat' if i % 2 else 'dog'}" for i, name in enumerate(names))])
    (tmp_path / "labels.csv").write_text(table)
    checked = table.replace("04.png,dog", "04.png,bird") if fault == "test table" else table
    (tmp_path / "checked.csv").write_text(checked)
    if fault == "image":
        (tmp_path / "03.png").write_bytes((tmp_path / "03.png").read_bytes()[:50])
    if fault == "table":
        (tmp_path / "labels.csv").write_bytes(table.replace("cat", "ch\xe8vre").encode("latin1"))
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04")
    arguments = ["--data.root=.", "--data.labels=labels.csv", "--data.test_labels=checked.csv"]
    if fault == "noisy labels":
        arguments.append("--data.noisy_labels_file=noise.npz")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={ROOT}/configs/own_images/resnet14.yaml", "--trainer.accelerator=cpu", *arguments])
    sentence = str(stopped.value)
    assert sentence.startswith("noisylightning: ")
    assert message in sentence
    assert "\n" not in sentence


def test_a_wrong_key_in_a_file_is_named(tmp_path):
    (tmp_path / "wrong.yaml").write_text("modle: NoisyLabelClassifier\n")
    done = noisylightning("fit", "--config", tmp_path / "wrong.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "modle" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_suffices(run_here, capsys):
    for arguments, parts in (
        (("fit", "--help"), ("--data.help", "--model.help", "--ckpt_path")),
        (("fit", "--model.help=NoisyLabelClassifier"), ("--model.correction", "How T enters the loss")),
        (("estimate", "--help"), ("--output", "--estimator")),
    ):
        with pytest.raises(SystemExit):
            run_here(*arguments)
        said = capsys.readouterr().out
        assert all(part in said for part in parts)
