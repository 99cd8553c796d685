"""Finding the wrong labels of noisy MNIST: an audit by T-hat beside cleanlab, and training on what either finds.

    python benchmarks/audit.py --data-dir FOLDER_WITH_MNIST --jobs 2

784-128-128-10 with dropout 0.2 and Adagrad at 0.01, batches of 128, 10 % for validation, ``--epochs`` a stage, as in
``transition.py``. For each noise and seed one default fit (cross-entropy, T-hat, forward correction with it) gives
T-hat and the network by which the audit judges all 60,000 labels, those of validation included; "2 folds" judges each
by a network that is trained with the same T-hat and without the sample. Where the default leaves T the identity, by
which no label is wrong, the audit refuses. cleanlab gets the 5-fold posteriors of cross-entropy on the same
architecture, and ranks by self-confidence and by normalised margin; how many labels are wrong it says by
``num_label_issues``, and which by ``find_label_issues``.

Then cross-entropy is trained on the labels as they are, on those that the audit relabels, drops or makes soft, and
without those that cleanlab finds; forward correction is the default fit's. Validation labels stay noisy, and the clean
test set is looked at once for the last weights.

Seconds are of one thread: "whole" is all that is trained and computed for it, "audit" what comes after a fit that one
would make anyway.

It can be interrupted, and goes on where it was. Writes ``benchmarks/results/audit.json``, ``audit.md`` and
``audit_training.md``.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cleanlab.count import num_label_issues
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from sklearn.metrics import average_precision_score
from torch import Tensor

import noisylightning as nl
from noisylightning import data as noises
from noisylightning.audit import (
    Audit,
    AuditTable,
    audit_predictions,
    audit_with_trainer,
    write_marks,
)
from noisylightning.audit import write_table as write_audit_table
from noisylightning.data import MNISTDataModule, Relabel
from noisylightning.models import MLP
from noisylightning.phases import held_out_predictions
from noisylightning.transition import relative_l1_error

NOISES: dict[str, noises.LabelNoise] = {
    "symmetric 0.2": noises.SymmetricNoise(0.2),
    "asymmetric 0.2": noises.AsymmetricNoise(0.2),
    "pair-flip 0.45": noises.PairFlipNoise(0.45),
    "asymmetric 0.6": noises.AsymmetricNoise(0.6),
    "instance-dependent 0.2": noises.InstanceDependentNoise(0.2),
    "instance-dependent 0.4": noises.InstanceDependentNoise(0.4),
}
ROUND_EPOCHS = 5
RATE = 0.01
FOLDS = 5  # of cleanlab's posteriors
CLEANLAB = ("self_confidence", "normalized_margin")
FINDS = ("audit", "audit, 2 folds", *(f"cleanlab, {name}" for name in CLEANLAB))
TRAINS = ("as they are", "forward, T-hat", "audit, relabel", "audit, drop", "audit, soft", "cleanlab, drop")


class Run:
    """All of one noise and seed."""

    def __init__(self, noise: str, seed: int, arguments: argparse.Namespace, folder: Path) -> None:
        self.noise, self.seed, self.arguments, self.folder = noise, seed, arguments, folder
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        data = self.data()
        data.prepare_data()
        data.setup("fit")
        assert data.noisy_labels is not None
        self.true = data.transition
        self.wrong = data.load_train()[1].long() != data.noisy_labels.labels.cpu()

    def data(self, **options: Any) -> MNISTDataModule:
        """Return the data, with the same noise every time."""
        return MNISTDataModule(
            self.arguments.data_dir, noise=NOISES[self.noise], noise_seed=self.seed, seed=self.seed, **options
        )

    def model(self, correction: nl.Correction) -> nl.NoisyLabelClassifier:
        """Return the network, with the same first weights every time."""
        seed_everything(self.seed, verbose=False)
        network = MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2)
        optimizer = functools.partial(torch.optim.Adagrad, lr=RATE)
        return nl.NoisyLabelClassifier(network, correction, num_classes=10, optimizer=optimizer)

    def trainer(self, epochs: int, callbacks: list[Callback] | None = None) -> Trainer:
        """Return a trainer that leaves nothing."""
        return Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=self.folder,
            callbacks=callbacks or [],
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=self.arguments.batches,
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep how long something takes."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun

    def keep(self, **row: Any) -> None:
        """Keep a row."""
        row = {"noise": self.noise, "seed": self.seed, **row}
        self.rows.append(row)
        print(row, flush=True)

    def run(self) -> list[dict[str, Any]]:
        """Run all."""
        epochs = self.arguments.epochs
        callback = nl.EstimateTransitionCallback(epochs, round_epochs=ROUND_EPOCHS)
        model, data = self.model(nl.ForwardCorrection()), self.data()
        with self.timed("fit"):
            self.trainer(2 * epochs, [callback]).fit(model, data)
        assert callback.transition is not None
        assert self.true is not None
        self.keep(
            trains="forward, T-hat",
            test_accuracy=self.accuracy(model, data),
            transition_error=float(relative_l1_error(callback.transition.double(), self.true.double())),
        )
        self.train("as they are")
        if model.correction.known_transition().is_identity:
            self.keep(finds="audit", refusal="T-hat is the identity")
        else:
            self.audit(model, data, callback)
        self.cleanlab()
        return self.rows

    def audit(self, model: nl.NoisyLabelClassifier, data: MNISTDataModule, callback: Any) -> None:
        """Audit by the network of the fit, and by others that leave out a half; train on what is found."""
        with self.timed("audit"):
            found = audit_with_trainer(self.trainer(1), model, data, standard_error=callback.standard_error)
        whole = self.seconds["fit"] + self.seconds["audit"]
        self.judge("audit", found.table.wrong, found.errors.total, whole, self.seconds["audit"], found)
        self.train_on(found)
        transition = callback.transition
        with self.timed("folds"):
            held_out = held_out_predictions(
                self.trainer(1), self.model(nl.ForwardCorrection(transition)), self.data(), 2, self.arguments.epochs
            )
            found = audit_predictions(held_out, transition, standard_error=callback.standard_error)
        whole = self.seconds["fit"] + self.seconds["folds"]
        self.judge("audit, 2 folds", found.table.wrong, found.errors.total, whole, self.seconds["folds"], found)

    def train_on(self, found: Audit) -> None:
        """Train on what an audit finds."""
        path = self.folder / "audit.csv"
        write_audit_table(found.table, path)
        for how in ("relabel", "drop", "soft"):
            self.train(f"audit, {how}", Relabel(path, how))

    def cleanlab(self) -> None:
        """Let cleanlab judge 5-fold posteriors, and train without what it finds."""
        with self.timed("posteriors"):
            found = held_out_predictions(
                self.trainer(1), self.model(nl.NoCorrection()), self.data(), FOLDS, self.arguments.epochs
            )
        labels, probs = found.noisy_labels.numpy(), found.probs.double().numpy()
        for name in CLEANLAB:
            with self.timed(name):
                quality = get_label_quality_scores(labels, probs, method=name)
                number = num_label_issues(labels, probs)
            seconds = self.seconds[name]
            whole = self.seconds["posteriors"] + seconds
            self.judge(f"cleanlab, {name}", -torch.from_numpy(quality), float(number), whole, whole)
        issues = find_label_issues(labels, probs, return_indices_ranked_by="self_confidence", n_jobs=1)
        table = AuditTable.from_probs(found.probs.double(), found.noisy_labels)
        write_marks(table, issues, self.folder / "cleanlab.csv")
        self.train("cleanlab, drop", Relabel(self.folder / "cleanlab.csv"))

    def judge(
        self, name: str, score: Tensor, number: float, whole: float, audit: float, found: Audit | None = None
    ) -> None:
        """Keep how well a ranking of all labels finds the wrong ones, and how well their number is known."""
        true = int(self.wrong.sum())
        first = score.argsort(descending=True, stable=True)[:true]
        row = {
            "finds": name,
            "average_precision": float(average_precision_score(self.wrong.numpy(), score.numpy())),
            "precision": float(self.wrong[first].double().mean()),
            "number": number,
            "true_number": true,
            "seconds_whole": round(whole, 1),
            "seconds_audit": round(audit, 1),
        }
        if found is not None:
            row |= {"low": found.errors.low, "high": found.errors.high}
        self.keep(**row)

    def train(self, name: str, relabel: Relabel | None = None) -> None:
        """Train cross-entropy."""
        model, data = self.model(nl.NoCorrection()), self.data(relabel=relabel)
        self.trainer(self.arguments.epochs).fit(model, data)
        self.keep(trains=name, test_accuracy=self.accuracy(model, data))

    @torch.no_grad()
    def accuracy(self, model: nl.NoisyLabelClassifier, data: MNISTDataModule) -> float:
        """Return the accuracy on the clean test set."""
        model.eval()
        data.setup("test")
        right = [(model(inputs).argmax(1) == labels).float() for inputs, labels, *_ in data.test_dataloader()]
        return float(torch.cat(right).mean())


def task(noise: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one noise and seed, in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return Run(noise, seed, arguments, Path(folder)).run()


def tables(runs: list[dict[str, Any]], output: Path) -> None:
    """Write the tables, one row a noise."""

    def cell(noise: str, kind: str, name: str, value: Callable[[dict[str, Any]], float], digits: int) -> str:
        chosen = [run for run in runs if run["noise"] == noise and run.get(kind) == name]
        values = [value(run) for run in chosen if "refusal" not in run]
        return "refuses" if chosen and not values else mean_and_deviation(values, digits)

    columns: dict[str, tuple[Callable[[dict[str, Any]], float], int]] = {
        "average precision": (lambda run: run["average_precision"], 4),
        "precision at the true number": (lambda run: run["precision"], 4),
        "error of the number, %": (lambda run: 100 * (run["number"] / run["true_number"] - 1), 1),
        "seconds, whole": (lambda run: run["seconds_whole"], 0),
        "seconds, audit": (lambda run: run["seconds_audit"], 1),
    }
    rows = [
        [noise, name, *(cell(noise, "finds", name, value, digits) for value, digits in columns.values())]
        for noise in NOISES
        for name in FINDS
        if any((run["noise"], run.get("finds")) == (noise, name) for run in runs)
    ]
    write_table(output.with_name("audit.md"), ["noise", "ranking", *columns], rows)
    rows = [
        [noise, *(cell(noise, "trains", name, lambda run: 100 * run["test_accuracy"], 2) for name in TRAINS)]
        for noise in NOISES
    ]
    write_table(output.with_name("audit_training.md"), ["noise", *TRAINS], rows)


def main() -> None:
    """Run all that has not been run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NOISYLIGHTNING_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a stage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noises", nargs="+", choices=list(NOISES), default=list(NOISES))
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--batches", type=int, default=None, help="of an epoch, to try it out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "audit.json")
    arguments = parser.parse_args()
    settings = {"epochs_a_stage": arguments.epochs, "round_epochs": ROUND_EPOCHS, "batches": arguments.batches}
    content: dict[str, Any] = {"environment": environment(), **settings, "runs": []}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        if all(before[name] == value for name, value in settings.items()):
            content["runs"] = before["runs"]
    done = {(run["noise"], run["seed"]) for run in content["runs"]}
    cells = [(noise, seed) for seed in range(arguments.seeds) for noise in arguments.noises]
    todo = [cell for cell in cells if cell not in done]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(task, *cell, arguments) for cell in todo]):
            content["runs"] += future.result()
            write_json(arguments.output, content)
    tables(content["runs"], arguments.output)


if __name__ == "__main__":
    main()
