"""The accuracy on clean labels as noisy ones tell it on MNIST, beside the truth on the same samples.

    python benchmarks/clean_accuracy_mnist.py --data-dir FOLDER_WITH_MNIST

T-hat and its standard errors are those that the default has found in ``transition.json``, where they are in it (at
asymmetric 0.6 with one trusted label a class, which tells 5 and 6 apart). Forward correction with it is trained as
there, and its accuracy on the 6,000 samples of the noisy validation set is estimated from their noisy labels and T-hat;
the clean labels of the same samples then say what it is. Writes ``benchmarks/results/clean_accuracy_mnist.json`` and
``.md``.
"""

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from transition import NOISES, RATE

import noisylightning as nl
from noisylightning.data import MNISTDataModule
from noisylightning.functional import clean_accuracy, count_pairs
from noisylightning.models import MLP

RESULTS = Path(__file__).parent / "results"
RESOLVED = {
    "symmetric 0.2": "consensus",
    "symmetric 0.5": "consensus",
    "asymmetric 0.2": "consensus",
    "pair-flip 0.45": "consensus",
    "asymmetric 0.6": "consensus, 1 trusted",
}


def run(found: dict[str, Any], epochs: int, data_dir: str) -> dict[str, Any]:
    """Train with a T-hat, and compare estimate and truth."""
    transition = torch.tensor(found["transition"], dtype=torch.float64)
    error = torch.tensor(found["standard_error"], dtype=torch.float64)
    seed = found["seed"]
    seed_everything(seed, verbose=False)
    data = MNISTDataModule(data_dir, noise=NOISES[found["noise"]], noise_seed=seed, seed=seed)
    model = nl.NoisyLabelClassifier(
        MLP(784, 10, hidden=(128, 128), dropout=0.2),
        nl.ForwardCorrection(transition.float()),
        optimizer=functools.partial(torch.optim.Adagrad, lr=RATE),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
    model.eval()
    with torch.no_grad():
        rows = [(model(inputs).argmax(dim=1), labels) for inputs, labels, *_ in data.val_dataloader()]
    predicted, noisy = (torch.cat(column) for column in zip(*rows, strict=True))
    estimate = clean_accuracy(count_pairs(noisy, predicted, 10), transition, error)
    low, high = estimate.interval()
    truth = float((predicted == data.load_train()[1].long()[data.val_index]).double().mean())
    return {
        "noise": found["noise"],
        "seed": seed,
        "estimate": float(estimate.value),
        "low": float(low),
        "high": float(high),
        "truth": truth,
    }


def main() -> None:
    """Run all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NOISYLIGHTNING_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--output", type=Path, default=RESULTS / "clean_accuracy_mnist.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads((RESULTS / "transition.json").read_text())
    runs = []
    for found in before["runs"]:
        if RESOLVED.get(found["noise"]) == found["method"] and "transition" in found:
            runs.append(run(found, before["epochs_a_stage"], arguments.data_dir))
            print(runs[-1], flush=True)
    write_json(arguments.output, {"environment": environment(), "epochs": before["epochs_a_stage"], "runs": runs})
    rows = []
    for noise in RESOLVED:
        of_noise = [row for row in runs if row["noise"] == noise]
        cells = [mean_and_deviation([100 * row[key] for row in of_noise], 2) for key in ("estimate", "truth")]
        off = mean_and_deviation([100 * (row["estimate"] - row["truth"]) for row in of_noise], 2)
        half = mean_and_deviation([50 * (row["high"] - row["low"]) for row in of_noise], 2)
        covered = sum(row["low"] <= row["truth"] <= row["high"] for row in of_noise)
        rows.append([noise, *cells, off, half, f"{covered} of {len(of_noise)}"])
    header = ["noise", "estimate, %", "truth, %", "difference, points", "half of the 95 % interval", "covered"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
