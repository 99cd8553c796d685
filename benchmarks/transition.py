"""Every estimator of T on noisy MNIST: the error of T-hat, and what forward correction makes of it.

    python benchmarks/transition.py --data-dir FOLDER_WITH_MNIST --jobs 2

784-128-128-10 with dropout 0.2 and Adagrad at 0.01 (the rate that ``mnist.py`` finds for cross-entropy), batches of
128, 10 % for validation, ``--epochs`` a stage. For each noise and seed, cross-entropy is trained once, and its weights
of the least noisy validation loss speak for the estimators that look at one network; the default, which is
``ConsensusEstimator``, runs as it is in a fit of its own, whose parts are the two folds of the confident joint. Forward
correction is then trained with each T-hat, and with the true T, from the same first weights. "limit" is the error of
the T that is counted with all clean labels of the same draw; "up to names" is the accuracy under the best names of
classes that noisy labels cannot tell apart. The clean test set is looked at once for each set of last weights, and once
for those of the least noisy validation loss.

It can be interrupted, and goes on where it was. Writes ``benchmarks/results/transition.json``, ``transition.md`` and
its like, ``transition_default.md``,
``transition.png`` (T, T-hat, its standard error and the difference) and ``trusted.png`` (accuracy against the number of
trusted labels).
"""

import argparse
import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

import noisylightning as nl
from noisylightning import data as noises
from noisylightning.data import MNISTDataModule
from noisylightning.functional import exchangeable
from noisylightning.models import MLP, with_features
from noisylightning.phases import Fit, Phase
from noisylightning.plotting import compare_transitions
from noisylightning.predictions import Predictions
from noisylightning.transition import VolumeMinimization, relative_l1_error

NOISES: dict[str, noises.LabelNoise] = {
    "symmetric 0.2": noises.SymmetricNoise(0.2),
    "symmetric 0.5": noises.SymmetricNoise(0.5),
    "asymmetric 0.2": noises.AsymmetricNoise(0.2),
    "asymmetric 0.6": noises.AsymmetricNoise(0.6),
    "pair-flip 0.45": noises.PairFlipNoise(0.45),
    "instance-dependent 0.4": noises.InstanceDependentNoise(0.4),
}
HARD = "asymmetric 0.6"
TRUSTED = (1, 5, 20, 100)
ROUND_EPOCHS = 5
RATE = 0.01
OF_NETWORK: dict[str, Callable[[int], nl.TransitionEstimator]] = {
    "anchor, maximum": functools.partial(nl.AnchorEstimator, quantile=None),
    "anchor": nl.AnchorEstimator,
    "dual-T": nl.DualTEstimator,
    "simplex": nl.SimplexEstimator,
    "cost-sensitive": nl.CostSensitiveEstimator,
}
ORDER = (
    "cross-entropy",
    "true T",
    "limit",
    "anchor, maximum",
    "anchor",
    "dual-T",
    "confident joint",
    "clusterability, features",
    "clusterability, pixels",
    "cost-sensitive",
    "simplex",
    "volume minimisation",
    "consensus",
    *(f"consensus, {count} trusted" for count in TRUSTED),
    *(f"trusted data, {count}" for count in TRUSTED),
)


class Listen(Phase):
    """Take down what the default's estimators say before they are refined."""

    name = "listen"
    trains = False

    def __init__(self) -> None:
        self.heard: dict[str, Tensor] = {}

    def begin(self, fit: Fit) -> None:
        """Take it down."""
        self.heard = {candidate.name: candidate.transition for candidate in fit.memory.candidates[1:]}


class Run:
    """The fits of one noise and seed."""

    def __init__(self, noise: str, seed: int, missing: set[str], arguments: argparse.Namespace) -> None:
        self.noise, self.seed, self.missing, self.arguments = noise, seed, missing, arguments
        self.rows: list[dict[str, Any]] = []
        self.true: Tensor

    def data(self, **options: Any) -> MNISTDataModule:
        """Return the data, with the same noise every time."""
        return MNISTDataModule(
            self.arguments.data_dir, noise=NOISES[self.noise], noise_seed=self.seed, seed=self.seed, **options
        )

    def fit(
        self,
        method: str,
        correction: nl.Correction,
        callback: Callback | None = None,
        epochs: int | None = None,
        data: MNISTDataModule | None = None,
        estimate: Tensor | None = None,
        **options: Any,
    ) -> tuple[nl.NoisyLabelClassifier, MNISTDataModule]:
        """Train, measure and keep a row; return the module with the weights of the least noisy validation loss."""
        seed_everything(self.seed, verbose=False)
        data = data or self.data()
        optimizer = functools.partial(torch.optim.Adagrad, lr=RATE)
        network = MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2)
        model = nl.NoisyLabelClassifier(network, correction, num_classes=10, optimizer=optimizer, **options)
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            best = ModelCheckpoint(folder, monitor="val_loss", mode="min")
            trainer = Trainer(
                max_epochs=epochs or self.arguments.epochs,
                accelerator="auto",
                devices=1,
                logger=False,
                default_root_dir=folder,
                callbacks=[callback, best] if callback else [best],
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(model, data)
            seconds = time.perf_counter() - begun
            last = self.accuracy(model, data)
            up_to_names = self.up_to_names(model, data)
            model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
        row = {"noise": self.noise, "seed": self.seed, "method": method, "last": last, "seconds": round(seconds, 1)}
        row["selected"] = self.accuracy(model, data)
        if up_to_names is not None:
            row["last_up_to_names"] = up_to_names
        if estimate is not None:
            row["error"] = self.error(estimate)
        self.rows.append(row)
        print(row, flush=True)
        return model, data

    @torch.no_grad()
    def accuracy(self, model: nl.NoisyLabelClassifier, data: MNISTDataModule, names: Tensor | None = None) -> float:
        """Return the accuracy on the clean test set; with classes under other names, where there are any."""
        model.eval()
        data.setup("test")
        names = torch.arange(10) if names is None else names
        right = [(names[model(inputs).argmax(1)] == labels).float() for inputs, labels, *_ in data.test_dataloader()]
        return float(torch.cat(right).mean())

    def up_to_names(self, model: nl.NoisyLabelClassifier, data: MNISTDataModule) -> float | None:
        """Return the accuracy under the best names of classes that noisy labels cannot tell apart; None without any."""
        transition = model.correction.transition
        groups = [] if transition is None else exchangeable(transition.detach())
        if not groups:
            return None
        found = []
        for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
            names = torch.arange(10)
            for group, order in zip(groups, orders, strict=True):
                names[list(group)] = torch.tensor(order)
            found.append(self.accuracy(model, data, names))
        return max(found)

    def error(self, estimate: Tensor) -> float:
        """Return the relative L1 error of T-hat."""
        return float(relative_l1_error(estimate.double(), self.true.double()))

    def forward(self, method: str, estimate: Tensor) -> None:
        """Train with a T-hat."""
        self.fit(method, nl.ForwardCorrection(estimate.float()), estimate=estimate)

    def run(self) -> list[dict[str, Any]]:
        """Run all."""
        torch.set_num_threads(1)
        data = self.data()
        data.prepare_data()
        data.setup("fit")
        assert data.transition is not None
        self.true = data.transition
        if "limit" in self.missing:
            self.limit(data)
        if self.missing & {"cross-entropy", *OF_NETWORK}:
            self.of_network()
        if "true T" in self.missing:
            self.fit("true T", nl.ForwardCorrection(self.true.clone()), estimate=self.true)
        if self.missing & {"consensus", "confident joint", "clusterability, features"}:
            self.consensus("consensus")
        if "clusterability, pixels" in self.missing:
            self.attempt("clusterability, pixels", nl.ClusterabilityEstimator, pixels(data))
        if "volume minimisation" in self.missing:
            learnt = nl.ForwardCorrection(VolumeMinimization(10))
            self.fit("volume minimisation", learnt, transition_lr=RATE)
            assert learnt.transition is not None
            self.rows[-1]["error"] = self.error(learnt.transition.detach())
        for count in TRUSTED:
            self.trusted(count)
        return [row for row in self.rows if row["method"] in self.missing]

    def of_network(self) -> None:
        """Train with cross-entropy, ask the estimators that look at one network, and train with what they say."""
        model, data = self.fit("cross-entropy", nl.NoCorrection())
        predictions = predict(model, data)
        for name, make in OF_NETWORK.items():
            self.attempt(name, make, predictions)

    def limit(self, data: MNISTDataModule) -> None:
        """Count T with all clean labels of the draw."""
        assert data.noisy_labels is not None
        clean, noisy = data.load_train()[1].long(), data.noisy_labels.labels.cpu()
        counts = torch.zeros(10, 10, dtype=torch.float64).index_put_(
            (clean, noisy), torch.ones(len(clean), dtype=torch.float64), accumulate=True
        )
        error = self.error(counts / counts.sum(1, keepdim=True))
        self.rows.append({"noise": self.noise, "seed": self.seed, "method": "limit", "error": error})

    def attempt(self, name: str, make: Callable[[int], nl.TransitionEstimator], found: Predictions) -> None:
        """Estimate T from predictions, and train with it; an estimator may refuse."""
        estimator = make(10)
        try:
            estimator.update(found)
            estimate = estimator.compute()
        except ValueError as refusal:
            self.rows.append({"noise": self.noise, "seed": self.seed, "method": name, "refusal": str(refusal)})
            return
        self.forward(name, estimate)

    def consensus(self, method: str, **options: Any) -> None:
        """Run the default as a user would, and train with what its estimators say before they are refined."""
        listen = Listen()
        epochs = self.arguments.epochs
        callback = nl.EstimateTransitionCallback(epochs, round_epochs=ROUND_EPOCHS)
        callback.phases.insert(3, listen)
        self.fit(method, nl.ForwardCorrection(), callback, 2 * epochs, self.data(**options))
        assert callback.transition is not None
        row = self.rows[-1]
        row |= {"error": self.error(callback.transition), "transition": callback.transition.tolist()}
        if callback.standard_error is not None:
            row["standard_error"] = callback.standard_error.tolist()
        if not options:
            names = {
                "ConfidentJointEstimator": "confident joint",
                "ClusterabilityEstimator": "clusterability, features",
            }
            for name, heard in listen.heard.items():
                if name in names and names[name] in self.missing:
                    self.forward(names[name], heard)

    def trusted(self, count: int) -> None:
        """Give the default, and the trusted-data estimator, some trusted labels a class."""
        if f"consensus, {count} trusted" in self.missing:
            self.consensus(f"consensus, {count} trusted", trusted=count)
        if f"trusted data, {count}" not in self.missing:
            return
        callback = nl.EstimateTransitionCallback(self.arguments.epochs, estimator=nl.TrustedDataEstimator)
        data = self.data(trusted=count)
        self.fit(f"trusted data, {count}", nl.ForwardCorrection(), callback, 2 * self.arguments.epochs, data)
        assert callback.transition is not None
        self.rows[-1]["error"] = self.error(callback.transition)


@torch.no_grad()
def predict(model: nl.NoisyLabelClassifier, data: MNISTDataModule) -> Predictions:
    """Run the network over the data that T is estimated on."""
    loader = data.estimation_dataloader()
    index = loader.dataset.index.cpu()  # type: ignore[attr-defined]
    both = with_features(model.eval().backbone)
    found = [(*both(inputs), labels) for inputs, labels, *_ in loader]
    logits, features, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return Predictions(logits, labels, index, ~torch.isin(index, data.train_index), features)


def pixels(data: MNISTDataModule) -> Predictions:
    """Take the pixels as features, without a network."""
    loader = data.estimation_dataloader()
    inputs, labels = (torch.cat(column) for column in zip(*((x, y) for x, y, *_ in loader), strict=True))
    return Predictions(torch.zeros(len(labels), 10), labels, features=inputs.flatten(1))


def task(noise: str, seed: int, missing: set[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one noise and seed, in a process of its own."""
    return Run(noise, seed, missing, arguments).run()


def missing(noise: str, seed: int, runs: list[dict[str, Any]]) -> set[str]:
    """Tell which methods have no row yet."""
    asked = {method for method in ORDER if noise == HARD or "trusted" not in method}
    return asked - {run["method"] for run in runs if (run["noise"], run["seed"]) == (noise, seed)}


def tables(runs: list[dict[str, Any]], output: Path) -> None:
    """Write the tables, one row a noise."""

    def cells(key: str, scale: float, digits: int) -> list[list[str]]:
        rows = []
        for noise in NOISES:
            row = [noise]
            for method in methods:
                found = [run for run in runs if (run["noise"], run["method"]) == (noise, method)]
                values = [scale * run[key] for run in found if key in run]
                row.append(
                    "refuses" if not values and found and "refusal" in found[0] else mean_and_deviation(values, digits)
                )
            rows.append(row)
        return rows

    methods = [method for method in ORDER if "trusted" not in method]
    estimated = [method for method in methods if method not in ("cross-entropy", "true T")]
    for name, key, scale, digits, shown in (
        ("", "last", 100, 2, [method for method in methods if method != "limit"]),
        ("_names", "last_up_to_names", 100, 2, ["true T", "consensus"]),
        ("_selected", "selected", 100, 2, [method for method in methods if method != "limit"]),
        ("_error", "error", 1, 3, estimated),
    ):
        methods = shown
        rows = [row for row in cells(key, scale, digits) if any(cell not in ("", "-") for cell in row[1:])]
        write_table(output.with_name(f"transition{name}.md"), ["noise", *shown], rows)


def summary(runs: list[dict[str, Any]], output: Path) -> None:
    """Write the default beside cross-entropy, the paper's estimator and the true T."""
    one = f"consensus, {TRUSTED[0]} trusted"
    rows = []
    for noise, method in [(noise, "consensus") for noise in NOISES] + [(HARD, one)]:

        def of(name: str, key: str, noise: str = noise) -> list[float]:
            return [run[key] for run in runs if (run["noise"], run["method"]) == (noise, name) and key in run]

        def percent(name: str, key: str = "last", of: Callable[..., list[float]] = of) -> str:
            return mean_and_deviation([100 * value for value in of(name, key)], 2)

        given = ", one trusted label a class" if method == one else ""
        allowed = [1.5 * value + 0.01 for value in of("limit", "error")]
        found = [run for run in runs if (run["noise"], run["method"]) == (noise, method)]
        named = [error for run in found if (error := error_up_to_names(run)) is not None]
        errors = [mean_and_deviation(values, 3) for values in (of(method, "error"), named, allowed)]
        shown = [percent(name) for name in ("cross-entropy", "anchor", method)]
        names = percent(method, "last_up_to_names")
        rows.append([noise + given, *shown, names, percent("true T"), *errors])
    header = ["noise", "cross-entropy", "anchors", "default", "default, up to names", "true T"]
    header += ["error of T-hat", "error, up to names", "1.5 limits + 0.01"]
    write_table(output.with_name("transition_default.md"), header, rows)


def error_up_to_names(run: dict[str, Any]) -> float | None:
    """Return the error of a T-hat under the best names of classes that noisy labels cannot tell apart, if any."""
    estimate = torch.tensor(run.get("transition", []), dtype=torch.float64)
    groups = exchangeable(estimate) if len(estimate) else []
    if not groups:
        return None
    true, errors = true_transition(run["noise"]), []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        names = torch.arange(10)
        for group, order in zip(groups, orders, strict=True):
            names[list(group)] = torch.tensor(order)
        errors.append(float(relative_l1_error(estimate[names], true)))
    return min(errors)


def true_transition(name: str) -> Tensor:
    """Return the T of a noise that depends on the class alone."""
    noise = NOISES[name]
    if isinstance(noise, noises.AsymmetricNoise):
        noise = noises.AsymmetricNoise(float(name.split()[-1]), flips={**(MNISTDataModule.flips or {})})
    found = noise.transition(10)
    assert found is not None
    return found.double()


def pictures(runs: list[dict[str, Any]], output: Path) -> None:
    """Draw T-hat of the hard case, and the worth of trusted labels."""
    from matplotlib.figure import Figure

    hard = [run for run in runs if run["noise"] == HARD]
    first = next((run for run in hard if run["method"] == "consensus"), None)
    if first is not None and "standard_error" in first:
        true = true_transition(HARD).float()
        figure = compare_transitions(
            torch.tensor(first["transition"]), true, standard_error=torch.tensor(first["standard_error"])
        )
        figure.savefig(output.with_name("transition.png"), dpi=110, bbox_inches="tight")

    def points(method: str) -> list[float]:
        return [100 * run["last"] for run in hard if run["method"] == method]

    if not points(f"consensus, {TRUSTED[0]} trusted"):
        return
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for label, start, form in (
        ("default", "consensus", "consensus, {} trusted"),
        ("trusted data", None, "trusted data, {}"),
    ):
        counts = [0, *TRUSTED] if start else list(TRUSTED)
        values = [torch.tensor(points(start if count == 0 else form.format(count))) for count in counts]  # type: ignore[arg-type]
        means = [float(value.mean()) for value in values]
        spread = [float(value.std()) if len(value) > 1 else 0.0 for value in values]
        axes.errorbar(range(5 - len(counts), 5), means, yerr=spread, marker="o", capsize=3, label=label)
    lines = (("true T", "true T", "--"), ("anchor", "anchors, as in the paper", ":"))
    for method, text, style in (*lines, ("cross-entropy", "cross-entropy", "-.")):
        mean = float(torch.tensor(points(method)).mean())
        axes.axhline(mean, linestyle=style, color="gray", linewidth=1)
        axes.annotate(text, (0, mean), fontsize=8, va="bottom")
    axes.set_xticks(range(5), ["0", *map(str, TRUSTED)])
    axes.set_xlabel("trusted labels a class")
    axes.set_ylabel("clean test accuracy, %")
    axes.set_title(f"MNIST, {HARD}, forward correction")
    axes.legend(loc="center right")
    figure.savefig(output.with_name("trusted.png"), dpi=110)


def main() -> None:
    """Run all that has not been run, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("NOISYLIGHTNING_DATA"), help="folder with MNIST/raw")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a stage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "transition.json")
    arguments = parser.parse_args()
    content = {
        "environment": environment(),
        "epochs_a_stage": arguments.epochs,
        "round_epochs": ROUND_EPOCHS,
        "runs": [],
    }
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        if before["epochs_a_stage"] == arguments.epochs:
            content["runs"] = before["runs"]
    cells = [
        (noise, seed, missing(noise, seed, content["runs"])) for seed in range(arguments.seeds) for noise in NOISES
    ]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for future in as_completed([pool.submit(task, *cell, arguments) for cell in cells if cell[2]]):
            content["runs"] += future.result()
            write_json(arguments.output, content)
    tables(content["runs"], arguments.output)
    summary(content["runs"], arguments.output)
    pictures(content["runs"], arguments.output)


if __name__ == "__main__":
    main()
