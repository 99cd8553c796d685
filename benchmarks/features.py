"""Noisy labels on frozen features: losses and corrections with a linear head, with Mixup and without; and the audit.

    noisylightning features --data CIFAR10NDataModule --encoder efficientnet_lite0 --size 128 --output cifar10n
    python benchmarks/features.py --features cifar10n
    noisylightning features --data IMDBDataModule --encoder minilm --output imdb
    python benchmarks/features.py --features imdb --batch-size 128 --rates 1e-3 1e-2 --alphas 0

(both with ``--precision bf16`` for the committed results; of CIFAR-10's drawn noises they have Mixup for symmetric 0.9
alone). A linear head and AdamW. Learning rate and weight decay are
chosen for each line by the same search, on the noisy validation accuracy of the first seed; weights by that of every
epoch. Labels are those that people gave, or drawn by the paper's noises. T-hat comes from nearest neighbours before any
training (``clusterability``), from the samples that cross-entropy's network is surest of (``anchors``), and by the
default of a fit in two stages (``default``, rounds of half a stage), each once for a set of labels and a seed;
"measured T" is counted with the clean labels. "forward GCE" corrects generalised cross-entropy by it. The clean test
set is used once for the last and once for the selected weights; "up to names" is the accuracy of these under the best
names of classes that noisy labels cannot tell apart by T-hat. ELR remembers each sample, which a mixed one is not,
so that it goes without Mixup.

The audit judges all training labels by the selected weights of "forward, default" without Mixup and its T-hat, beside
cleanlab's rankings on 5-fold posteriors of cross-entropy's head.

Writes ``benchmarks/results/features_NAME.json`` after each fit, from which it goes on if it is started again,
``features_NAME.md`` and ``features_NAME_audit.md``, NAME being that of the folder of features.
"""

import argparse
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cleanlab.rank import get_label_quality_scores
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

import noisylightning as nl
from noisylightning import data as noises
from noisylightning import losses
from noisylightning.audit import audit_with_trainer
from noisylightning.data import FeaturesDataModule
from noisylightning.functional import clusterability as of_neighbours
from noisylightning.functional import count_pairs, exchangeable, neighbours
from noisylightning.models import MLP
from noisylightning.phases import held_out_predictions
from noisylightning.predictions import Predictions
from noisylightning.results import evaluate_fit
from noisylightning.search import tune
from noisylightning.transition import relative_l1_error

NOISES: dict[str, noises.LabelNoise] = {
    "symmetric 0.2": noises.SymmetricNoise(0.2),
    "symmetric 0.5": noises.SymmetricNoise(0.5),
    # Drawn from all classes, as the literature counts it: of 10, nine of ten others would leave nothing to learn from.
    "symmetric 0.9, own class included": noises.SymmetricNoise(0.81),
    "asymmetric 0.2": noises.AsymmetricNoise(0.2),
    "asymmetric 0.4": noises.AsymmetricNoise(0.4),
    "asymmetric 0.6": noises.AsymmetricNoise(0.6),
    "pair-flip 0.45": noises.PairFlipNoise(0.45),
}
LOSSES: dict[str, Callable[[], losses.Loss]] = {
    "cross-entropy": losses.CrossEntropy,
    "GCE": losses.GeneralizedCrossEntropy,
    "NCE+RCE": functools.partial(
        losses.ActivePassiveLoss, losses.NormalizedCrossEntropy(), losses.ReverseCrossEntropy()
    ),
}
ESTIMATES = ("clusterability", "anchors", "default", "measured T")
FORWARD = {"forward": "cross-entropy", "forward GCE": "GCE"}
CORRECTED = (*(("forward", name) for name in ESTIMATES), ("forward GCE", "default"), ("forward GCE", "measured T"))
METHODS = (*LOSSES, "ELR", *(", ".join(line) for line in CORRECTED))
DECAYS = [0.1, 3.0]
AUDITED = "forward, default"
FOLDS = 5  # of cleanlab's posteriors
UP_TO_NAMES = "selected_up_to_names"
BINARY = ("asymmetric 0.2", "asymmetric 0.4")  # noises of two classes
RANKINGS = ("audit", "cleanlab, self_confidence", "cleanlab, normalized_margin")


def seek_once() -> None:
    """Seek the neighbours of the same features once for all labels and seeds: they do not depend on these."""
    seek, found = neighbours.nearest_neighbours, dict[bytes, Tensor]()

    def remembered(features: Tensor, num: int, *of_search: Any) -> Tensor:
        key = hashlib.blake2b(f"{num} {features.dtype} {features.shape}".encode())
        for given in (features, *of_search):
            key.update(given.contiguous().numpy().data if isinstance(given, Tensor) else str(given).encode())
        if key.digest() not in found:
            found[key.digest()] = seek(features, num, *of_search)
        return found[key.digest()]

    vars(of_neighbours)["nearest_neighbours"] = remembered


def data_of(labels: str, seed: int, arguments: argparse.Namespace) -> FeaturesDataModule:
    """Make the data module of a seed."""
    drawn = NOISES.get(labels)
    return FeaturesDataModule(
        arguments.features,
        labels=None if drawn else labels,
        noise=drawn,
        noise_seed=seed,
        seed=seed,
        with_index=True,
        batch_size=arguments.batch_size,
        val_fraction=0.1,
    )


def model_of(data: FeaturesDataModule, correction: nl.Correction, **options: Any) -> nl.NoisyLabelClassifier:
    """Make a model of a setting."""
    head = MLP(data.num_features, data.num_classes, hidden=())
    optimizer = functools.partial(torch.optim.AdamW, **options)
    return nl.NoisyLabelClassifier(head, correction, num_classes=data.num_classes, optimizer=optimizer)


def correction_of(method: str, transitions: dict[str, Tensor], data: FeaturesDataModule) -> nl.Correction:
    """Make the correction of a line."""
    if method in LOSSES:
        return nl.NoCorrection(loss=LOSSES[method]())
    if method == "ELR":
        samples = data.manifest.parts["train"].rows
        return nl.NoCorrection(loss=losses.EarlyLearningRegularization(samples, data.num_classes))
    how, _, name = method.partition(", ")
    return nl.ForwardCorrection(transitions[name].float(), loss=LOSSES[FORWARD[how]]())


def trainer_of(folder: str, epochs: int, callbacks: list[Callback]) -> Trainer:
    """Make a trainer that leaves nothing."""
    return Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=False,
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def estimates(data: FeaturesDataModule, seed: int, epochs: int, rate: float) -> dict[str, Tensor]:
    """Estimate T in every way; an estimator may refuse."""
    data.setup("fit")
    assert data.transition is not None
    found = {"measured T": data.transition}
    inputs, labels = _all(data)
    index = torch.arange(len(labels))
    everything = Predictions(torch.zeros(len(labels), data.num_classes), labels, index, features=inputs)
    makers: dict[str, Any] = {"clusterability": None, "anchors": nl.AnchorEstimator, "default": nl.ConsensusEstimator}
    for name, make in makers.items():
        try:
            if make is None:
                estimator = nl.ClusterabilityEstimator(data.num_classes)
                estimator.update(everything)
                found[name] = estimator.compute()
                continue
            rounds = epochs // 2 if name == "default" else None
            with tempfile.TemporaryDirectory() as folder:
                seed_everything(seed, verbose=False)
                model = model_of(data, nl.ForwardCorrection(), lr=rate, weight_decay=DECAYS[0])
                callback = nl.EstimateTransitionCallback(epochs, estimator=make, round_epochs=rounds)
                trainer_of(folder, epochs + 1, [callback, ModelCheckpoint(folder, monitor="val_loss")]).fit(model, data)
                assert callback.transition is not None
                found[name] = callback.transition
        except ValueError as refusal:
            print(f"{name}: {refusal}", flush=True)
    return found


def _all(data: FeaturesDataModule) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*((x, y) for x, y, *_ in data.estimation_dataloader()), strict=True)
    return torch.cat(inputs), torch.cat(labels)


def run(model: nl.NoisyLabelClassifier, data: FeaturesDataModule, epochs: int, mixes: list[Callback]) -> dict[str, Any]:
    """Train once, leave the selected weights in the model, and return what came out."""
    with tempfile.TemporaryDirectory() as folder:
        selected = ModelCheckpoint(folder, monitor="val_accuracy", mode="max")
        trainer = trainer_of(folder, epochs, [*mixes, selected])
        trainer.fit(model, data)
        *_, last, best = evaluate_fit(trainer, model, data)
        model.load_state_dict(torch.load(selected.best_model_path, weights_only=True)["state_dict"])
    found = {"last": last.test_accuracy, "selected": best.test_accuracy, "selected_epoch": best.epoch}
    transition = model.correction.transition
    groups = [] if transition is None else exchangeable(transition.detach())
    return found | ({UP_TO_NAMES: up_to_names(model, data, groups)} if groups else {})


@torch.no_grad()
def up_to_names(model: nl.NoisyLabelClassifier, data: FeaturesDataModule, groups: list[tuple[int, ...]]) -> float:
    """Return the clean test accuracy under the best names of classes that noisy labels cannot tell apart."""
    model.eval()
    data.setup("test")
    predicted, clean = zip(*((model(x).argmax(dim=1), y) for x, y, *_ in data.test_dataloader()), strict=True)
    names, classes, labels = torch.arange(data.num_classes), torch.cat(predicted), torch.cat(clean)
    for group in groups:  # which share no class
        members = torch.tensor(group)
        together = count_pairs(labels, classes, data.num_classes)[members][:, members]
        of_label, of_class = linear_sum_assignment(together.numpy(), maximize=True)
        names[members[of_class]] = members[of_label]
    return float((names[classes] == labels).double().mean())


def audits(
    model: nl.NoisyLabelClassifier, data: FeaturesDataModule, options: dict[str, Any], seed: int, epochs: int
) -> list[dict[str, Any]]:
    """Rank all training labels, by a network with its T-hat and by cleanlab; a T-hat that is the identity refuses."""
    assert data.noisy_labels is not None
    wrong = (data.load_train()[1].long() != data.noisy_labels.labels.cpu()).numpy()
    found: list[dict[str, Any]] = []

    def judge(name: str, score: Tensor) -> None:
        ranks = {"ap": average_precision_score(wrong, score.numpy()), "auroc": roc_auc_score(wrong, score.numpy())}
        found.append({"ranking": name, **{key: float(value) for key, value in ranks.items()}})

    with tempfile.TemporaryDirectory() as folder:
        if not model.correction.known_transition().is_identity:
            audit = audit_with_trainer(trainer_of(folder, 1, []), model, data)
            judge("audit", audit.table.wrong)
            found[-1] |= {"number": audit.errors.total, "true_number": int(wrong.sum())}
        seed_everything(seed, verbose=False)
        plain = model_of(data, nl.NoCorrection(), **options)
        held_out = held_out_predictions(trainer_of(folder, 1, []), plain, data, FOLDS, epochs)
    labels, probs = held_out.noisy_labels.numpy(), held_out.probs.double().numpy()
    for name in RANKINGS[1:]:
        judge(name, -torch.from_numpy(get_label_quality_scores(labels, probs, method=name.removeprefix("cleanlab, "))))
    return found


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder that `noisylightning features` has left")
    parser.add_argument("--labels", nargs="+", help="sets of people's labels, or noises; by default all of the folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 1.0], help="of Mixup; 0 is without it")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3], help="learning rates that are tried")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the .json")
    arguments = parser.parse_args()
    seek_once()
    output = arguments.output or Path(__file__).parent / "results" / f"features_{arguments.features.name}.json"
    manifest = FeaturesDataModule(arguments.features).manifest
    drawn = [name for name in NOISES if len(manifest.class_names) > 2 or name in BINARY]
    sets = arguments.labels or [*manifest.noisy_labels, *drawn]
    options_tried = {"lr": arguments.rates, "weight_decay": DECAYS}
    settings = {
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "options": options_tried,
        "encoder": manifest.encoder,
        "transform": manifest.transform,
    }
    runs: list[dict[str, Any]] = []
    audited: list[dict[str, Any]] = []
    if output.exists():
        before = json.loads(output.read_text())
        if before["settings"] == settings:
            runs, audited = before["runs"], before["audits"]

    for seed, labels in product(range(arguments.seeds), sets):
        data = data_of(labels, seed, arguments)
        transitions: dict[str, Tensor] = {}
        for method, alpha in product(arguments.methods, arguments.alphas):
            if method == "ELR" and alpha:
                continue
            line = {"labels": labels, "method": method, "alpha": alpha}
            if any((line | {"seed": seed}).items() <= result.items() for result in runs):
                continue
            name = method.partition(", ")[2]  # of the T-hat, where there is one
            if name and not transitions:
                transitions = estimates(data, seed, arguments.epochs, arguments.rates[0])
            if name and name not in transitions:
                continue  # it has refused, and said why
            mixes = functools.partial(_mixes, alpha, seed)
            first = next((result for result in runs if line.items() <= result.items()), None)
            if first is None:
                make = functools.partial(model_of, data)
                tuned = tune(
                    lambda make=make, method=method, known=transitions, data=data, **options: make(
                        correction_of(method, known, data), **options
                    ),
                    data, options_tried, arguments.epochs, mixes, monitor="val_accuracy", devices=1,
                )  # fmt: skip
                options = tuned.best.options
            else:
                options = first["options"]
            seed_everything(seed, verbose=False)
            model = model_of(data, correction_of(method, transitions, data), **options)
            found = run(model, data, arguments.epochs, mixes())
            if name:
                found["error"] = float(
                    relative_l1_error(transitions[name].double(), transitions["measured T"].double())
                )
            runs.append(line | {"seed": seed, "options": options} | found)
            print(runs[-1], flush=True)
            if method == AUDITED and not alpha:
                plain = {"labels": labels, "method": "cross-entropy", "alpha": 0.0}
                of_plain = next((result["options"] for result in runs if plain.items() <= result.items()), options)
                ranked = audits(model, data, of_plain, seed, arguments.epochs)
                audited += [{"labels": labels, "seed": seed, **row} for row in ranked]
                print(*audited[-len(ranked) :], sep="\n", flush=True)
            write_json(output, {"environment": environment(), "settings": settings, "runs": runs, "audits": audited})
    write_table(output.with_suffix(".md"), *table(runs, sets))
    write_table(output.with_name(f"{output.stem}_audit.md"), *audit_table(audited, sets))


def _mixes(alpha: float, seed: int) -> list[Callback]:
    return [nl.Mixup(alpha, seed=seed)] if alpha else []


def table(runs: list[dict[str, Any]], sets: list[str]) -> tuple[list[str], list[list[str]]]:
    """Make a line of each set of labels and method."""
    rows = []
    for labels, method, alpha in product(sets, METHODS, sorted({run["alpha"] for run in runs})):
        found = [run for run in runs if (run["labels"], run["method"], run["alpha"]) == (labels, method, alpha)]
        if found:
            cells = [mean_and_deviation([100 * run[key] for run in found], 2) for key in ("last", "selected")]
            errors = mean_and_deviation([run["error"] for run in found if "error" in run], 3)
            named = mean_and_deviation([100 * run[UP_TO_NAMES] for run in found if UP_TO_NAMES in run], 2)
            rows.append([labels, method, f"{alpha:g}" if alpha else "-", *cells, named, errors, str(len(found))])
    header = [
        "labels",
        "method",
        "Mixup",
        "clean test %, last epoch",
        "selected epoch",
        "up to names",
        "error of T-hat",
    ]
    header += ["seeds"]
    return header, rows


def audit_table(audited: list[dict[str, Any]], sets: list[str]) -> tuple[list[str], list[list[str]]]:
    """Make a line of each set of labels and ranking."""
    rows = []
    for labels, ranking in product(sets, RANKINGS):
        found = [row for row in audited if (row["labels"], row["ranking"]) == (labels, ranking)]
        if found:
            cells = [mean_and_deviation([row[key] for row in found], 3) for key in ("ap", "auroc")]
            off = [100 * (row["number"] / row["true_number"] - 1) for row in found if "number" in row]
            rows.append([labels, ranking, *cells, mean_and_deviation(off, 1), str(len(found))])
    return ["labels", "ranking", "average precision", "AUROC", "error of the number, %", "seeds"], rows


if __name__ == "__main__":
    main()
