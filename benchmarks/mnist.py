"""Cross-entropy, forward correction with T-hat and with the true T on noisy MNIST.

    python benchmarks/mnist.py --data-dir FOLDER_WITH_MNIST

784-128-128-10 with dropout 0.2 and Adagrad, batches of 128, 10 % for validation, as in Patrini et al. (CVPR 2017); 25
epochs a stage. The learning rate is chosen for cross-entropy, by its accuracy on the noisy validation data of the first
seed, and given to all. Weights are selected by noisy validation accuracy, those that T is estimated with by the least
noisy validation loss; the clean test set is looked at once for the last and once for the selected weights. Writes
``benchmarks/results/mnist.json`` and ``mnist.md``.
"""

import argparse
import functools
import tempfile
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
from noisylightning.data import AsymmetricNoise, MNISTDataModule, SymmetricNoise
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit

NOISES = {"symmetric 0.5": SymmetricNoise(0.5), "asymmetric 0.6": AsymmetricNoise(0.6)}
METHODS = ("cross-entropy", "forward, T-hat", "forward, true T")
RATES = (0.003, 0.01, 0.03)


def run(method: str, noise: str, seed: int, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and return what came out."""
    seed_everything(seed)
    data = MNISTDataModule(arguments.data_dir, noise=NOISES[noise], noise_seed=seed, seed=seed)
    estimated = method == "forward, T-hat"
    callbacks: list[Callback] = []
    if estimated:
        callbacks.append(EstimateTransitionCallback(arguments.epochs, estimator=AnchorEstimator))
    if method == "forward, true T":
        callbacks.append(KnownTransitionCallback())
    model = NoisyLabelClassifier(
        MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2),
        NoCorrection() if method == "cross-entropy" else ForwardCorrection(),
        num_classes=10,
        optimizer=functools.partial(torch.optim.Adagrad, lr=rate),
    )
    with tempfile.TemporaryDirectory() as folder:
        selected = ModelCheckpoint(folder, monitor="val_accuracy", mode="max")
        trainer = Trainer(
            max_epochs=arguments.epochs * (2 if estimated else 1),
            accelerator="auto",
            devices=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[*callbacks, selected],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        result: dict[str, Any] = {
            "method": method,
            "noise": noise,
            "seed": seed,
            "learning_rate": rate,
            "noisy_validation": float(selected.best_model_score or 0),
        }
        if arguments.tuning:
            return result
        *_, last, best = evaluate_fit(trainer, model, data)
        if estimated:
            result["transition_error"] = last.transition_error
        result |= {"last": last.test_accuracy, "selected": best.test_accuracy}
    print(result, flush=True)
    return result


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with MNIST/raw (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--epochs", type=int, default=25, help="epochs of a stage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mnist.json")
    arguments = parser.parse_args()

    runs, tuning = [], []
    for noise in NOISES:
        arguments.tuning = True
        tried = [run("cross-entropy", noise, 0, rate, arguments) for rate in RATES]
        rate = max(tried, key=lambda result: result["noisy_validation"])["learning_rate"]
        tuning += tried
        arguments.tuning = False
        runs += [run(method, noise, seed, rate, arguments) for method in METHODS for seed in range(arguments.seeds)]
    content = {"environment": environment(), "epochs_a_stage": arguments.epochs, "tuning": tuning, "runs": runs}
    write_json(arguments.output, content)

    def cell(found: list[dict[str, Any]], key: str, scale: float = 100, digits: int = 2) -> str:
        return mean_and_deviation([scale * result[key] for result in found if key in result], digits)

    rows = []
    for noise in NOISES:
        for method in METHODS:
            found = [result for result in runs if (result["noise"], result["method"]) == (noise, method)]
            error = cell(found, "transition_error", 1, 3)
            rows.append([noise, method, cell(found, "last"), cell(found, "selected"), error])
    header = ["noise", "loss", "clean test %, last epoch", "selected epoch", "relative L1 error of T-hat"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
