"""Stage two on noisy and trusted samples together, beside the same without the trusted ones, on noisy MNIST.

    python benchmarks/joint.py --data-dir FOLDER_WITH_MNIST

Asymmetric noise 0.6; 784-128-128-10 with dropout 0.2 and Adagrad at 0.01, batches of 128, 10 % for validation, T-hat by
``TrustedDataEstimator``. Stage one, and so T-hat, is the same in both fits of a line. The clean test set is looked at
once for each set of last weights, and once for those of the least noisy validation loss. Writes
``benchmarks/results/joint.json`` after each fit, from which it goes on if it is started again, and ``joint.md``.
"""

import argparse
import functools
import json
import os
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from noisylightning import (
    EstimateTransitionCallback,
    ForwardCorrection,
    NoisyLabelClassifier,
    TrustedDataEstimator,
)
from noisylightning.data import AsymmetricNoise, MNISTDataModule
from noisylightning.models import MLP
from noisylightning.transition import relative_l1_error

TRUSTED = (1, 5, 20, 100)


@torch.no_grad()
def accuracy(model: NoisyLabelClassifier, data: MNISTDataModule) -> float:
    """Return the accuracy on the clean test set."""
    model.eval()
    data.setup("test")
    right = [(model(inputs).argmax(1) == labels).float() for inputs, labels, *_ in data.test_dataloader()]
    return float(torch.cat(right).mean())


def run(count: int, joint: bool, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and measure the last weights and those of the least noisy validation loss."""
    seed_everything(seed, verbose=False)
    data = MNISTDataModule(arguments.data_dir, noise=AsymmetricNoise(0.6), noise_seed=seed, seed=seed, trusted=count)
    network = MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2)
    optimizer = functools.partial(torch.optim.Adagrad, lr=0.01)
    model = NoisyLabelClassifier(network, ForwardCorrection(), num_classes=10, optimizer=optimizer)
    callback = EstimateTransitionCallback(arguments.epochs, estimator=TrustedDataEstimator, train_on_trusted=joint)
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_loss", mode="min")
        trainer = Trainer(
            max_epochs=2 * arguments.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[callback, best],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        found = {"trusted": count, "joint": joint, "seed": seed, "last": accuracy(model, data)}
        model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    assert callback.transition is not None
    assert data.transition is not None
    error = float(relative_l1_error(callback.transition.double(), data.transition.double()))
    return found | {"selected": accuracy(model, data), "error": error}


def main() -> None:
    """Run all that has not been run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NOISYLIGHTNING_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a stage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "joint.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"environment": environment(), "epochs_a_stage": arguments.epochs, "runs": []}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        if before["epochs_a_stage"] == arguments.epochs:
            content["runs"] = before["runs"]
    done = {(row["trusted"], row["joint"], row["seed"]) for row in content["runs"]}
    for seed, count, joint in product(range(arguments.seeds), TRUSTED, (False, True)):
        if (count, joint, seed) not in done:
            content["runs"].append(run(count, joint, seed, arguments))
            print(content["runs"][-1], flush=True)
            write_json(arguments.output, content)

    def cell(count: int, joint: bool, key: str, scale: float, digits: int) -> str:
        found = [scale * row[key] for row in content["runs"] if (row["trusted"], row["joint"]) == (count, joint)]
        return mean_and_deviation(found, digits)

    header = ["trusted a class", "error of T-hat", "noisy alone", "with trusted", "noisy alone, selected epoch",
              "with trusted, selected epoch"]  # fmt: skip
    columns = [(joint, key) for key in ("last", "selected") for joint in (False, True)]
    rows = [
        [str(count), cell(count, False, "error", 1, 3), *(cell(count, joint, key, 100, 2) for joint, key in columns)]
        for count in TRUSTED
    ]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
