"""The accuracy on clean labels as noisy ones tell it on MNIST, beside the truth on the same samples.

    python benchmarks/clean_accuracy_mnist.py --data-dir FOLDER_WITH_MNIST

T-hat and its standard errors are those that the default has found in ``transition.json``, where they are in it (at
asymmetric 0.6 with one trusted label a class, which tells 5 and 6 apart). Forward correction with it is trained as
there, and its accuracy on the 6,000 samples of the noisy validation set is estimated from their noisy labels and T-hat;
the clean labels of the same samples then say what it is. "all, 2 folds" is the same for all 60,000 samples, each
predicted by one of two networks that is trained with T-hat and without it, as ``audit --folds 2`` does. Writes
``benchmarks/results/clean_accuracy_mnist.json`` and ``.md``.
"""

import argparse
import functools
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor
from transition import NOISES, RATE

import noisylightning as nl
from noisylightning.data import MNISTDataModule
from noisylightning.functional import clean_accuracy, count_pairs
from noisylightning.models import MLP
from noisylightning.phases import held_out_predictions

RESULTS = Path(__file__).parent / "results"
VALIDATION, ALL = "validation", "all, 2 folds"
RESOLVED = {
    "symmetric 0.2": "consensus",
    "symmetric 0.5": "consensus",
    "asymmetric 0.2": "consensus",
    "pair-flip 0.45": "consensus",
    "asymmetric 0.6": "consensus, 1 trusted",
}


def run(found: dict[str, Any], epochs: int, data_dir: str) -> list[dict[str, Any]]:
    """Train with a T-hat, and compare estimates and truth."""
    transition = torch.tensor(found["transition"], dtype=torch.float64)
    error = torch.tensor(found["standard_error"], dtype=torch.float64)
    seed = found["seed"]
    data = MNISTDataModule(data_dir, noise=NOISES[found["noise"]], noise_seed=seed, seed=seed)
    model = network(transition, seed)
    trainer(epochs).fit(model, data)
    model.eval()
    with torch.no_grad():
        rows = [(model(inputs).argmax(dim=1), labels) for inputs, labels, *_ in data.val_dataloader()]
    clean = data.load_train()[1].long()
    predicted, noisy = (torch.cat(column) for column in zip(*rows, strict=True))
    held_out = held_out_predictions(trainer(epochs), network(transition, seed), data, 2, epochs)
    lines = []
    for name, predictions, labels, truth in (
        (VALIDATION, predicted, noisy, clean[data.val_index]),
        (ALL, held_out.logits.argmax(dim=1), held_out.noisy_labels, clean[held_out.index]),
    ):
        estimate = clean_accuracy(count_pairs(labels, predictions, 10), transition, error)
        low, high = map(float, estimate.interval())
        right = float((predictions == truth).double().mean())
        lines.append(
            {"noise": found["noise"], "seed": seed, "samples": name, "truth": right}
            | {"estimate": float(estimate.value), "low": low, "high": high}
        )
    return lines


def network(transition: Tensor, seed: int) -> nl.NoisyLabelClassifier:
    """Make the network, with the same first weights every time."""
    seed_everything(seed, verbose=False)
    optimizer = functools.partial(torch.optim.Adagrad, lr=RATE)
    backbone = MLP(784, 10, hidden=(128, 128), dropout=0.2)
    return nl.NoisyLabelClassifier(backbone, nl.ForwardCorrection(transition.float()), optimizer=optimizer)


def trainer(epochs: int) -> Trainer:
    """Make a trainer that leaves nothing."""
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    """Run all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NOISYLIGHTNING_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--transitions", type=Path, default=RESULTS / "transition.json", help="of transition.py")
    parser.add_argument("--output", type=Path, default=RESULTS / "clean_accuracy_mnist.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(arguments.transitions.read_text())
    runs = []
    for found in before["runs"]:
        if RESOLVED.get(found["noise"]) == found["method"] and "transition" in found:
            runs += run(found, before["epochs_a_stage"], arguments.data_dir)
            print(*runs[-2:], sep="\n", flush=True)
    write_json(arguments.output, {"environment": environment(), "epochs": before["epochs_a_stage"], "runs": runs})
    rows = []
    for noise, samples in product(RESOLVED, (VALIDATION, ALL)):
        of_noise = [row for row in runs if (row["noise"], row["samples"]) == (noise, samples)]
        cells = [mean_and_deviation([100 * row[key] for row in of_noise], 2) for key in ("estimate", "truth")]
        off = mean_and_deviation([100 * (row["estimate"] - row["truth"]) for row in of_noise], 2)
        half = mean_and_deviation([50 * (row["high"] - row["low"]) for row in of_noise], 2)
        covered = sum(row["low"] <= row["truth"] <= row["high"] for row in of_noise)
        rows.append([noise, samples, *cells, off, half, f"{covered} of {len(of_noise)}"])
    header = [
        "noise",
        "samples",
        "estimate, %",
        "truth, %",
        "difference, points",
        "half of the 95 % interval",
        "covered",
    ]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
