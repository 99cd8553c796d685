"""Cross-entropy, forward correction with T-hat and with the true T on IMDB under binary asymmetric noise.

    python benchmarks/imdb.py --data-dir FOLDER_WITH_IMDB

All 25,000 + 25,000 reviews, and the smaller text network of Patrini et al. (CVPR 2017), an embedding of 50 channels and
one dense layer, with their Adagrad, 50 epochs a stage, batches of 128 and 10 % for validation. For each noise rate the
learning rate is the one with which *cross-entropy* reaches the least loss on the *noisy* validation data, under a seed
that is not used again; all methods get it. Weights, those that T is estimated with included, are selected by the same
loss; the clean test set is looked at once for the last and once for the selected weights of each run, and never before.
The seed of a run draws the noise, the split, the initial weights and the order of the samples. Writes
``benchmarks/results/imdb.json``, anew after every run, and ``imdb.md``.

It can be stopped and resumed: what the file already holds, tuning included, is not run again, and each entry says in
which environment it was made. To have a run made anew, delete it from the file.
"""

import argparse
import functools
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from noisylightning import (
    AnchorEstimator,
    EstimateTransitionCallback,
    ForwardCorrection,
    KnownTransitionCallback,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.data import AsymmetricNoise, IMDBDataModule
from noisylightning.internals import callbacks
from noisylightning.models import EmbeddingClassifier
from noisylightning.results import evaluate_fit

RATES = (0.2, 0.4)
METHODS = ("cross-entropy", "forward, T-hat", "forward, true T")
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
TUNING_SEED = 1000


def train(
    method: str, rate: float, seed: int, learning_rate: float, folder: Path, arguments: argparse.Namespace
) -> tuple[Trainer, NoisyLabelClassifier, IMDBDataModule]:
    """Train once."""
    seed_everything(seed, verbose=False)
    noise = AsymmetricNoise(rate)
    data = IMDBDataModule(arguments.data_dir, cache_dir=folder, noise=noise, noise_seed=seed, seed=seed)
    model = NoisyLabelClassifier(
        backbone=EmbeddingClassifier(data.vocab_size, num_classes=2, length=data.encoder.length),
        correction=NoCorrection() if method == "cross-entropy" else ForwardCorrection(),
        num_classes=2,
        optimizer=functools.partial(torch.optim.Adagrad, lr=learning_rate),
    )
    estimated = method == "forward, T-hat"
    callbacks: list[Callback] = [ModelCheckpoint(monitor="val_loss", mode="min")]
    if estimated:
        callbacks.append(EstimateTransitionCallback(arguments.epochs, estimator=AnchorEstimator))
    if method == "forward, true T":
        callbacks.append(KnownTransitionCallback())
    trainer = Trainer(
        max_epochs=arguments.epochs * (2 if estimated else 1),
        accelerator="auto",
        devices=1,
        default_root_dir=folder / f"{method} {rate} {seed} {learning_rate}",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return trainer, model, data


def noisy_validation_loss(rate: float, learning_rate: float, folder: Path, arguments: argparse.Namespace) -> float:
    """The least loss of cross-entropy on the noisy validation data."""
    trainer, _, _ = train("cross-entropy", rate, TUNING_SEED, learning_rate, folder, arguments)
    assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
    assert trainer.checkpoint_callback.best_model_score is not None
    return trainer.checkpoint_callback.best_model_score.item()


def run(
    method: str, rate: float, seed: int, learning_rate: float, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train once and return what came out."""
    start = time.perf_counter()
    trainer, model, data = train(method, rate, seed, learning_rate, folder, arguments)
    seconds = round(time.perf_counter() - start)
    estimates = [getattr(callback, "transition", None) for callback in callbacks(trainer)]
    estimated = next((transition for transition in estimates if transition is not None), None)
    return {
        "method": method,
        "rate": rate,
        "seed": seed,
        "learning_rate": learning_rate,
        "seconds": seconds,
        "estimated_transition": None if estimated is None else estimated.tolist(),
        "results": [asdict(result) for result in evaluate_fit(trainer, model, data)],
    }


def rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Make the rows of the table, one a rate and method."""
    found = []
    for rate in RATES:
        for method in METHODS:
            chosen = [result for result in runs if (result["rate"], result["method"]) == (rate, method)]
            last, best = [], []
            for result in chosen:
                final = [weights for weights in result["results"] if weights["phase"] == result["results"][-1]["phase"]]
                last.append(next(weights for weights in final if weights["selected_by"] == "last"))
                best.append(final[-1])
            error = "-"
            if method == "forward, T-hat":
                error = mean_and_deviation([weights["transition_error"] for weights in last], 3)
            accuracies = [mean_and_deviation([100 * w["test_accuracy"] for w in which], 2) for which in (last, best)]
            found.append([f"1 to 0 at {rate}", method, *accuracies, error, str(len(chosen))])
    return found


def begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take up what the output file holds, or begin a new one."""
    settings = {"epochs_a_stage": arguments.epochs, "tuning_seed": TUNING_SEED}
    if not arguments.output.exists():
        return {**settings, "environments": [], "tuning": [], "runs": []}
    content: dict[str, Any] = json.loads(arguments.output.read_text())
    for name, value in settings.items():
        if content[name] != value:
            sys.exit(f"{arguments.output} has {name} = {content[name]}, not {value}: give another --output.")
    return content


def find(entries: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """Return the entries made with these settings."""
    return [entry for entry in entries if all(entry[name] == value for name, value in settings.items())]


def keep(content: dict[str, Any], kind: str, entry: dict[str, Any], output: Path) -> None:
    """Add what was measured, and in which environment, and write the file."""
    here = environment()
    if here not in content["environments"]:
        content["environments"].append(here)
    content[kind].append({**entry, "environment": content["environments"].index(here)})
    write_json(output, content)


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with aclImdb or imdb.jsonl.xz ($NOISYLIGHTNING_DATA)")
    parser.add_argument("--epochs", type=int, default=50, help="epochs of a stage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "imdb.json")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_flush_denormal(True)  # Adagrad squares gradients that are tiny already, on which processors are slow

    content = begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            for learning_rate in LEARNING_RATES:
                if not find(content["tuning"], rate=rate, learning_rate=learning_rate):
                    loss = noisy_validation_loss(rate, learning_rate, Path(folder), arguments)
                    tried = {"rate": rate, "learning_rate": learning_rate, "noisy_validation_loss": loss}
                    keep(content, "tuning", tried, arguments.output)
        for seed in range(arguments.seeds):
            for rate in RATES:
                tried = min(find(content["tuning"], rate=rate), key=lambda tried: tried["noisy_validation_loss"])
                learning_rate = tried["learning_rate"]
                for method in METHODS:
                    if not find(content["runs"], method=method, rate=rate, seed=seed, learning_rate=learning_rate):
                        found = run(method, rate, seed, learning_rate, Path(folder), arguments)
                        keep(content, "runs", found, arguments.output)
    header = ["noise", "loss", "clean test %, last epoch", "selected epoch", "relative L1 error of T-hat", "seeds"]
    write_table(arguments.output.with_suffix(".md"), header, rows(content["runs"]))


if __name__ == "__main__":
    main()
