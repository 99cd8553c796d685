"""The fragments in configs/imdb: every stack of network, noise and method is built; one of each method is run."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from noisylightning import BackwardCorrection, ForwardCorrection, NoCorrection
from noisylightning.cli import NoisyLightningCLI, main
from noisylightning.data import IMDBDataModule

pytest.importorskip("tokenizers")
FOLDER = Path(__file__).parents[1] / "configs" / "imdb"
NETWORKS = {"embedding": "EmbeddingClassifier", "lstm": "LSTMClassifier", "transformer": "TransformerClassifier"}
NOISES = {None: None, "asymmetric_0.2": 0.2, "asymmetric_0.4": 0.4}
METHODS = {
    None: NoCorrection,
    "forward_known": ForwardCorrection,
    "forward_estimated": ForwardCorrection,
    "backward_estimated": BackwardCorrection,
}


@pytest.fixture(autouse=True)
def bare_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["noisylightning"])  # Lightning warns of arguments given twice


def stack(*fragments):
    return [f"--config={FOLDER / fragment}.yaml" for fragment in fragments if fragment is not None]


def test_no_fragment_is_forgotten():
    listed = {*NETWORKS, *NOISES, *METHODS} - {None}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == listed


@pytest.mark.parametrize(("network", "noise", "method"), itertools.product(NETWORKS, NOISES, METHODS))
def test_every_stack_is_built(network, noise, method):
    cli = NoisyLightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=[*stack(network, noise, method), "--trainer.accelerator=cpu"],
    )
    assert type(cli.model.backbone).__name__ == NETWORKS[network]
    assert type(cli.model.correction) is METHODS[method]
    assert cli.model.num_classes == 2
    assert (cli.datamodule.noise and cli.datamodule.noise.rate) == NOISES[noise]
    words = cli.datamodule.encoder.length if network == "embedding" else 3
    assert cli.model(torch.ones(1, words, dtype=torch.long)).shape == (1, 2)
    if method == "forward_estimated":
        callback = next(cb for cb in cli.trainer.callbacks if hasattr(cb, "stage_one_epochs"))
        assert 2 * callback.stage_one_epochs == cli.trainer.max_epochs


@pytest.fixture
def small_imdb(tmp_path, monkeypatch):
    """Eight reviews of each class and part in the layout of the original."""
    monkeypatch.setattr(IMDBDataModule, "reviews_per_class", 8)
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        for name, word in (("neg", "dull"), ("pos", "great")):
            folder = tmp_path / "data" / "aclImdb" / part / name
            folder.mkdir(parents=True)
            for i in range(8):
                (folder / f"{i}_{9 if name == 'pos' else 2}.txt").write_text(f"A {word} film, number {i}")
    return tmp_path / "data"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(small_imdb, method):
    estimated = method is not None and "estimated" in method
    arguments = [
        *stack("embedding", "asymmetric_0.2", method),
        f"--data.data_dir={small_imdb}",
        "--data.val_fraction=0.25",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        *(["--trainer.callbacks.stage_one_epochs=1"] if estimated else []),
    ]
    main(["fit", *arguments])
    (summary,) = small_imdb.parent.glob("lightning_logs/*/summary.json")
    rows = json.loads(summary.read_text())
    assert len(rows) == (3 if estimated else 2)
    assert rows[-1]["loss"] == (METHODS[method].__name__ if method else "CrossEntropy")
