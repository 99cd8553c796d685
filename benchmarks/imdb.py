"""Cross-entropy, forward correction with T-hat and with the true T on IMDB under binary asymmetric noise.

    python benchmarks/imdb.py --data-dir FOLDER_WITH_IMDB

All 25,000 + 25,000 reviews, and the smaller text network of Patrini et al. (CVPR 2017), an embedding of 50 channels and
one dense layer, with their Adagrad, 50 epochs a stage, batches of 128 and 10 % for validation. For each noise rate the
learning rate is the one with which *cross-entropy* reaches the least loss on the *noisy* validation data, under a seed
that is not used again; all methods get it. Weights, those that T is estimated with included, are selected by the same
loss; the clean test set is looked at once for the last and once for the selected weights of each run, and never before.
The seed of a run draws the noise, the split, the initial weights and the order of the samples. Writes
``benchmarks/results/imdb.json``, anew after every run, and ``imdb.md``.
"""

import argparse
import functools
import logging
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from noisylightning import (
    EstimateTransitionCallback,
    ForwardCorrection,
    KnownTransitionCallback,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.data import AsymmetricNoise, IMDBDataModule
from noisylightning.models import EmbeddingClassifier
from noisylightning.summary import summarize

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
        callbacks.append(EstimateTransitionCallback(arguments.epochs, monitor="val_loss", mode="min"))
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
    results = [asdict(result) for result in summarize(trainer, model, data)]
    used = model.correction.transition if method == "forward, T-hat" else None
    return {
        "method": method,
        "rate": rate,
        "seed": seed,
        "learning_rate": learning_rate,
        "seconds": seconds,
        "estimated_transition": used.tolist() if isinstance(used, torch.Tensor) else None,
        "results": results,
    }


def mean(values: list[float], digits: int) -> str:
    """Write the mean and, of more than one value, the standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Make the rows of the table, one a rate and method."""
    found = []
    for rate in RATES:
        for method in METHODS:
            chosen = [result for result in runs if (result["rate"], result["method"]) == (rate, method)]
            # weights are named "training, last", "stage 2, selected" and so on; stage one's come first
            last, selected = (
                [next(r for r in reversed(result["results"]) if r["weights"].endswith(which)) for result in chosen]
                for which in ("last", "selected")
            )
            error = mean([r["transition_error"] for r in last], 3) if method == "forward, T-hat" else "-"
            accuracies = [mean([100 * r["test_accuracy"] for r in weights], 2) for weights in (last, selected)]
            found.append([f"1 to 0 at {rate}", method, *accuracies, error, str(len(chosen))])
    return found


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

    content: dict[str, Any] = {
        "environment": environment(),
        "epochs_a_stage": arguments.epochs,
        "tuning_seed": TUNING_SEED,
        "tuning": [],
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        learning_rates = {}
        for rate in RATES:
            losses = {lr: noisy_validation_loss(rate, lr, Path(folder), arguments) for lr in LEARNING_RATES}
            learning_rates[rate] = min(losses, key=losses.__getitem__)
            content["tuning"].append({"rate": rate, "noisy_validation_loss": losses, "chosen": learning_rates[rate]})
            write_json(arguments.output, content)
        for seed in range(arguments.seeds):
            for rate in RATES:
                for method in METHODS:
                    found = run(method, rate, seed, learning_rates[rate], Path(folder), arguments)
                    content["runs"].append(found)
                    write_json(arguments.output, content)
    header = ["noise", "loss", "clean test %, last epoch", "selected epoch", "relative L1 error of T-hat", "seeds"]
    write_table(arguments.output.with_suffix(".md"), header, rows(content["runs"]))


if __name__ == "__main__":
    main()
