"""What MemorisationStopping does, and how well train_memorised tells what is memorised, on noisy MNIST.

    python benchmarks/memorisation.py --data-dir FOLDER_WITH_MNIST --epochs 30 --width 512 --val-fraction 0.8

made the committed results; without options it is larger. 784-1024-1024-10 without dropout, which learns every label by
heart if it is trained for long; Adam, batches of 128, 10 % for validation; cross-entropy and forward correction with
the true T, with MemorisationStopping and without. The true share of the wrong training labels that the network predicts
is counted in each epoch, with the clean labels, which nothing else sees. Weights are selected by noisy validation
accuracy; the clean test set is used once for the last and once for the selected ones. Writes
``benchmarks/results/memorisation.json`` after each fit, from which it goes on if it is started again, and
``memorisation.md``.
"""

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from noisylightning import ForwardCorrection, MemorisationStopping, NoCorrection, NoisyLabelClassifier
from noisylightning.data import AsymmetricNoise, LabelNoise, MNISTDataModule, SymmetricNoise
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit

NOISES: dict[str, LabelNoise] = {"symmetric 0.5": SymmetricNoise(0.5), "asymmetric 0.4": AsymmetricNoise(0.4)}
LOSSES = ("cross-entropy", "forward, true T")


class Watched(NoisyLabelClassifier):
    """Counts in each training epoch how many labels are wrong, and how many of those the network predicts."""

    wrong: Tensor  # whether the label is, of each training sample

    def on_train_start(self) -> None:
        """Have no epoch yet."""
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        super().on_train_epoch_start()
        self.seen, self.predicted = 0, 0

    def logits_of(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Count, and go on as ever."""
        logits, of_samples = super().logits_of(batch)
        if self.training:
            wrong = self.wrong[of_samples["index"].cpu()].to(logits.device)
            self.seen += int(wrong.sum())
            self.predicted += int((wrong & (logits.argmax(dim=1) == batch[1])).sum())
        return logits, of_samples

    def on_train_epoch_end(self) -> None:
        """Keep the epoch."""
        super().on_train_epoch_end()
        logged = self.trainer.callback_metrics
        names = ("train_memorised", "train_accuracy", "train_accuracy_ceiling", "train_loss", "train_loss_floor")
        known = {name: float(logged[name]) for name in names if name in logged}
        self.epochs.append({"true_share": self.predicted / self.seen} | known)


def run(noise: str, loss: str, stops: bool, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and return what came out."""
    seed_everything(seed)
    data = MNISTDataModule(
        arguments.data_dir,
        noise=NOISES[noise],
        noise_seed=seed,
        seed=seed,
        batch_size=128,
        val_fraction=arguments.val_fraction,
        with_index=True,
    )
    data.setup("fit")
    assert data.noisy_labels is not None
    assert data.transition is not None
    correction = ForwardCorrection(data.transition) if loss == "forward, true T" else NoCorrection()
    network = MLP(784, 10, hidden=(arguments.width, arguments.width), dropout=0.0)
    model = Watched(network, correction, num_classes=10, optimizer=functools.partial(torch.optim.Adam, lr=1e-3))
    model.wrong = data.noisy_labels.labels != data.load_train()[1]
    stopping = [MemorisationStopping(transition=data.transition)] if stops else []
    with tempfile.TemporaryDirectory() as folder:
        selected = ModelCheckpoint(folder, monitor="val_accuracy", mode="max")
        trainer = Trainer(
            max_epochs=arguments.epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[*stopping, selected],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        *_, last, best = evaluate_fit(trainer, model, data)
    result = {
        "noise": noise,
        "loss": loss,
        "stops": stops,
        "seed": seed,
        "epochs": len(model.epochs),
        "last": last.test_accuracy,
        "selected": best.test_accuracy,
        "selected_epoch": best.epoch,
        "of_each_epoch": model.epochs,
    }
    print({name: value for name, value in result.items() if name != "of_each_epoch"}, flush=True)
    return result


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with MNIST/raw (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--width", type=int, default=1024, help="of the two hidden layers")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="0.9 leaves little to train on: for a trial")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "memorisation.json")
    arguments = parser.parse_args()

    settings = {name: getattr(arguments, name) for name in ("epochs", "width", "val_fraction")}
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        found = json.loads(arguments.output.read_text())
        if found["settings"] == settings:
            runs = found["runs"]
    cases = [(noise, loss, stops) for noise in arguments.noises for loss in LOSSES for stops in (False, True)]
    for seed in range(arguments.seeds):
        for noise, loss, stops in cases:
            case = {"noise": noise, "loss": loss, "stops": stops, "seed": seed}
            if any(case.items() <= result.items() for result in runs):
                continue
            runs.append(run(**case, arguments=arguments))
            write_json(arguments.output, {"environment": environment(), "settings": settings, "runs": runs})

    def share(name: str, found: list[dict[str, Any]]) -> str:
        last = [result["of_each_epoch"][-1] for result in found]
        return mean_and_deviation([100 * epoch[name] for epoch in last if name in epoch], 1)

    def farthest(found: list[dict[str, Any]]) -> str:
        differences = [
            max(abs(epoch["true_share"] - epoch["train_memorised"]) for epoch in result["of_each_epoch"])
            for result in found
            if "train_memorised" in result["of_each_epoch"][0]
        ]
        return mean_and_deviation([100 * difference for difference in differences], 1)

    rows = []
    for noise, loss, stops in cases:
        found = [
            result for result in runs if (result["noise"], result["loss"], result["stops"]) == (noise, loss, stops)
        ]
        cells = [mean_and_deviation([100 * result[name] for result in found], 2) for name in ("last", "selected")]
        epochs = mean_and_deviation([float(result["epochs"]) for result in found], 1)
        shares = [share("true_share", found), share("train_memorised", found), farthest(found)]
        rows.append([noise, loss, "on" if stops else "off", epochs, *cells, *shares])
    header = ["noise", "loss", "stopping", "epochs", "clean test %, last epoch", "selected epoch"]
    header += ["wrong labels predicted, last epoch, %", "train_memorised, %", "largest difference, any epoch"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
