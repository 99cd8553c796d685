"""The command, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from layouts import write_own_table
from PIL import Image
from torch import nn
from toy import FeatureMeans, means_by_hand

from noisylightning import ClusterabilityEstimator, NoisyLabelClassifier
from noisylightning.cli import main
from noisylightning.data import AsymmetricNoise, DigitsDataModule, SymmetricNoise
from noisylightning.predictions import Predictions

ROOT = Path(__file__).parents[2]
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
    for part in ("noisy labels, best", "correction, best", "correction, last", "noisy", "est.", "test", "error"):
        assert part in table
    assert str(log_dir(finished)) in table


def test_a_run_says_little_else(finished):
    """Neither Lightning's talk nor its summary of the model, and no remains of a bar in a log file."""
    lines = [*(finished / "stderr").read_text().splitlines(), *(finished / "stdout").read_text().splitlines()]
    told = [line for line in lines if ", epoch " not in line]  # those come by the clock
    besides = [line for line in told if not line.startswith(("Part ", "Round "))]  # one for each network
    assert len(besides) <= 17  # of which three tell how T was found, and up to five whether to trust it
    verdict = json.loads((log_dir(finished) / "verdict.json").read_text())
    assert told[-2] == verdict["sentence"]
    assert verdict["recommended"] == {"phase": "correction", "selected_by": "val_accuracy"}
    talk = ("Seed set", "GPU available", "Tip", "Restoring", "Loaded model", "stopped", "Params", "\r", "it/s")
    assert not [line for line in lines if any(word in line for word in talk)]


def test_fit_improves_the_clean_test_accuracy(finished):
    first, last, best = json.loads((log_dir(finished) / "summary.json").read_text())
    assert [row["phase"] for row in (first, last, best)] == ["noisy labels", "correction", "correction"]
    assert [row["selected_by"] for row in (first, last, best)] == ["val_loss", "last", "val_accuracy"]
    assert last["test_accuracy"] > first["test_accuracy"]
    assert (first["correction"], first["loss"]) == (None, "CrossEntropy")
    assert (last["correction"], last["loss"]) == ("ForwardCorrection", "CrossEntropy")
    assert last["transition_error"] < 0.15
    assert first["transition_error"] is None
    assert first["epoch"] < 20 <= best["epoch"] <= last["epoch"]


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
    rows = {row["selected_by"]: row for row in json.loads((log_dir(finished) / "summary.json").read_text())}
    assert f"{rows['last']['test_accuracy']:.4f}"[:5] in tested
    run_here("predict", "--config", tmp_path / "plain.yaml", "--ckpt_path", last)
    run_here("validate", "--config", tmp_path / "plain.yaml", "--ckpt_path", last)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "estimate", "audit"])
def test_the_saved_configuration_works_with_every_command(command, finished, tmp_path, run_here):
    checkpoint = log_dir(finished) / "checkpoints" / "last.ckpt"
    given = TWO_EPOCHS if command == "fit" else ["--ckpt_path", checkpoint]
    run_here(command, "--config", log_dir(finished) / "config.yaml", *given)
    if command == "predict":
        (written,) = tmp_path.glob("lightning_logs/*/predictions.parquet")
        assert written.stat().st_size > 0
    if command == "estimate":
        assert np.load(tmp_path / "transition.npy", allow_pickle=False).shape == (10, 10)
    if command == "audit":
        written = {path.name for path in (tmp_path / "audit").iterdir()}
        assert written == {"audit.csv", "audit.html", "audit.json", "audit.parquet", "weights.npy"}


def test_an_audit_finds_the_wrong_labels_and_is_trained_on(finished, tmp_path, run_here):
    checkpoint, saved = log_dir(finished) / "checkpoints" / "last.ckpt", log_dir(finished) / "config.yaml"
    said = run_here("audit", "--config", saved, "--ckpt_path", checkpoint, "--output=mine")
    data = DigitsDataModule(noise=AsymmetricNoise(0.4))
    data.setup("fit")
    wrong = data.load_train()[1] != data.noisy_labels.labels
    summary = json.loads((tmp_path / "mine/audit.json").read_text())
    assert f"of {len(wrong):,} labels are wrong" in said
    assert summary["expected_wrong"] == pytest.approx(int(wrong.sum()), rel=0.3)  # it knows some by heart
    assert "sampling error of T-hat" in summary["interval_covers"]  # its standard errors are in the checkpoint
    first = [int(line.split(",")[0]) for line in (tmp_path / "mine/audit.csv").read_text().splitlines()[1:201]]
    assert wrong[first].double().mean() > 0.95
    relabel = ["--data.relabel.file=mine/audit.csv", "--data.relabel.how=drop"]
    run_here("fit", f"--config={ROOT}/configs/digits/cross_entropy.yaml", *relabel, "--trainer.max_epochs=1")
    (run,) = (folder.parent for folder in tmp_path.glob("lightning_logs/*/checkpoints"))  # the audit has one without
    config, last = run / "config.yaml", run / "checkpoints" / "last.ckpt"
    assert yaml.safe_load(config.read_text())["data"]["init_args"]["relabel"]["how"] == "drop"
    run_here("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs=2")


def test_an_audit_may_leave_each_sample_out(finished, tmp_path, run_here):
    checkpoint, saved = log_dir(finished) / "checkpoints" / "last.ckpt", log_dir(finished) / "config.yaml"
    short = ["--folds=2", "--trainer.max_epochs=21"]  # of which stage one has 20
    run_here("audit", "--config", saved, "--ckpt_path", checkpoint, *short)
    summary = json.loads((tmp_path / "audit/audit.json").read_text())
    assert summary["held_out"]
    assert summary["samples"] == 1437


def test_an_audit_of_a_file(tmp_path, run_here):
    generator = torch.Generator().manual_seed(0)
    transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    probs, labels = torch.rand(50, 2, generator=generator).softmax(1), torch.arange(50) % 2
    np.save(tmp_path / "T.npy", transition)
    np.save(tmp_path / "error.npy", torch.full((2, 2), 0.01))
    held_out = torch.ones(50, dtype=torch.bool)
    Predictions.from_probs(probs @ transition, labels, held_out=held_out).save(tmp_path / "noisy.npz")
    Predictions.from_probs(probs, labels).save(tmp_path / "clean.npz")
    given = ["--transition=T.npy", "--standard_error=error.npy"]
    run_here("audit", "--predictions=noisy.npz", *given)
    run_here("audit", "--predictions=clean.npz", "--probs_of=clean", *given, "--output=clean")
    noisy, clean = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("audit", "clean"))
    assert noisy["expected_wrong"] == pytest.approx(clean["expected_wrong"], rel=1e-4)
    for arguments, message in (
        (["--predictions=clean.npz", "--transition=T.npy"], "50 of 50 predictions are p.noisy | x. of samples"),
        (["--predictions=noisy.npz"], "give --transition FILE"),
        (["--predictions=noisy.npz", "--transition=T.npy", "--standard_error=absent.npy"], "correct standard_error"),
        ([], "audit needs --model and --data"),
    ):
        with pytest.raises(SystemExit, match=message) as stopped:
            main(["audit", *arguments])
        assert "\n" not in str(stopped.value)


def test_an_audit_needs_a_network_trained_with_a_transition(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="the identity, by which no label is wrong"):
        main(["audit", f"--config={log_dir(finished)}/config.yaml", f"--ckpt_path={log_dir(finished)}/stage_one.ckpt"])


def test_an_estimator_of_features_is_fed_with_them(finished, run_here):
    checkpoint = log_dir(finished) / "checkpoints" / "last.ckpt"
    config = ["--config", log_dir(finished) / "config.yaml", "--ckpt_path", checkpoint]
    means = ["--estimator=toy.FeatureMeans", "--estimator.width=128"]
    run_here("estimate", *config, *means)
    backbone = NoisyLabelClassifier.load_from_checkpoint(checkpoint, weights_only=True).backbone.eval().cpu()
    data = DigitsDataModule(noise=AsymmetricNoise(0.4))
    data.setup("fit")
    inputs, labels = map(torch.cat, zip(*data.estimation_dataloader(), strict=True))
    expected = means_by_hand(backbone.features(inputs), labels)
    torch.testing.assert_close(FeatureMeans.means, expected, atol=1e-4, rtol=0)
    run_here("estimate", *config, "--estimator=toy.FeatureMeans", "--estimator.width=64", "--feature_layer=backbone.1")
    expected = means_by_hand(inputs.flatten(1), labels)
    torch.testing.assert_close(FeatureMeans.means, expected, atol=1e-4, rtol=0)


def test_predictions_go_where_they_are_asked_for(finished, tmp_path, run_here):
    checkpoint = log_dir(finished) / "checkpoints" / "last.ckpt"
    config = log_dir(finished) / "config.yaml"
    run_here("predict", "--config", config, "--ckpt_path", checkpoint, "--output", "mine.npz")
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as written:
        assert written["clean_probs"].shape[1] == 10


def test_estimate_needs_no_network_where_the_estimator_needs_none(tmp_path, run_here):
    data = ["--data=DigitsDataModule", "--data.noise=SymmetricNoise", "--data.noise.rate=0.2"]
    run_here("estimate", *data, "--estimator=ClusterabilityEstimator", "--output=T.npy")
    module = DigitsDataModule(noise=SymmetricNoise(0.2))
    module.setup()
    inputs, labels = (torch.cat(part) for part in zip(*module.estimation_dataloader(), strict=True))
    estimator = ClusterabilityEstimator(10)
    estimator.update(Predictions(torch.zeros(1437, 10), labels, features=inputs.flatten(1)))
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), estimator.compute())
    with pytest.raises(SystemExit, match="AnchorEstimator needs a network's predictions"):
        main(["estimate", *data])


@pytest.mark.parametrize("command", ["validate", "estimate"])
def test_a_key_that_no_command_has_is_still_refused(command, finished, tmp_path):
    saved = (log_dir(finished) / "config.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(f"{saved}weigths_only: null\n")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", str(tmp_path / "wrong.yaml")])
    assert "weigths_only" in str(stopped.value)


def test_the_saved_configuration_keeps_a_size_that_was_given(finished):
    saved = yaml.safe_load((log_dir(finished) / "config.yaml").read_text())
    assert saved["model"]["init_args"]["backbone"]["init_args"]["in_features"] == 64


def test_print_config_shows_sizes(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs/digits/mlp.yaml"), "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["backbone"]["init_args"]["in_features"] == 64


class Bare(nn.Linear):
    """A network that takes no size from anybody."""

    def __init__(self) -> None:
        super().__init__(3, 3)


def test_the_table_says_how_many_columns_a_network_takes(tmp_path, run_here):
    write_own_table(tmp_path)
    files = [f"--data.train_file={tmp_path}/train.csv", f"--data.test_file={tmp_path}/test.csv"]
    short = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    config = f"--config={ROOT}/configs/own_table/mlp.yaml"
    run_here("fit", config, *files, *short)
    last = log_dir(tmp_path) / "checkpoints" / "last.ckpt"
    assert NoisyLabelClassifier.load_from_checkpoint(last, weights_only=True).backbone.in_features == 3


def test_a_network_that_takes_no_size_is_given_none(tmp_path, run_here, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    write_own_table(tmp_path)
    fit = [f"--config={ROOT}/configs/own_table/mlp.yaml", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    files = [f"--data.train_file={tmp_path}/train.csv", f"--data.test_file={tmp_path}/test.csv"]
    run_here("fit", *fit, *files, f"--model.backbone={__name__}.Bare")
    last = log_dir(tmp_path) / "checkpoints" / "last.ckpt"
    assert type(NoisyLabelClassifier.load_from_checkpoint(last, weights_only=True).backbone).__name__ == "Bare"
    written = torch.load(last, weights_only=True)["hyper_parameters"]["backbone"]
    assert not written.get("init_args")


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
