"""T learnt with the network on noisy MNIST: in one stage, and on from an estimate.

    OMP_NUM_THREADS=1 python benchmarks/learnt.py --data-dir FOLDER_WITH_MNIST

784-128-128-10 with dropout 0.2, Adagrad and batches of 128 as in ``benchmarks/mnist.py``, ten epochs a stage, one seed.
Stage one is cross-entropy, which the anchor estimate comes from; stage two begins from the first weights anew, as
EstimateTransitionCallback has it, with T-hat as it is or learning on from it. The rate of T and what holds it are
chosen by the noisy validation loss of the last epoch; the clean test set is looked at once, after the last epoch.
"Near the truth" begins from the true T with 4 % of the labels drawn at random: what a good estimate is spoilt by; with
Adagrad, and with Adam at 0.001, whose steps do not become smaller.
Writes ``benchmarks/results/learnt.json`` and ``learnt.md``, some twenty minutes on a core; it goes on where it stopped.
"""

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor

from noisylightning import (
    AnchorEstimator,
    EstimateTransitionCallback,
    ForwardCorrection,
    ImportanceReweighting,
    NoisyLabelClassifier,
)
from noisylightning.corrections import Correction
from noisylightning.data import AsymmetricNoise, LabelNoise, MNISTDataModule, PairFlipNoise, SymmetricNoise
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit
from noisylightning.transition import (
    NoiseAdaptation,
    TotalVariation,
    TransitionRevision,
    VolumeMinimization,
    relative_l1_error,
)

NOISES: dict[str, LabelNoise] = {
    "symmetric 0.5": SymmetricNoise(0.5),
    "asymmetric 0.6": AsymmetricNoise(0.6),
    "pair-flip 0.45": PairFlipNoise(0.45),
}
CORRECTIONS: dict[str, Callable[[float], Correction]] = {
    "VolumeMinimization": lambda pull: ForwardCorrection(VolumeMinimization(10, pull=pull)),
    "TransitionRevision": lambda pull: ImportanceReweighting(TransitionRevision(10, pull=pull)),
    "NoiseAdaptation": lambda pull: ForwardCorrection(NoiseAdaptation(10, pull=pull)),
    "TotalVariation": lambda pull: ForwardCorrection(TotalVariation(10, pull=pull)),
}
"""Each T with the correction that its paper has."""

ALONE = [(0.003, 0.0), (0.03, 0.0)]
"""(transition_lr, pull) in one stage,"""
ON = [(0.001, 0.0), (0.01, 0.0), (0.01, 1.0)]
"""and from an estimate."""
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.01),
    "Adam": functools.partial(torch.optim.Adam, lr=0.001),
}


def classifier(correction: Correction, rate: float | None = None, optimizer: str = "Adagrad") -> NoisyLabelClassifier:
    """The network, with the same first weights at each call."""
    seed_everything(0)
    return NoisyLabelClassifier(
        MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2),
        correction,
        num_classes=10,
        optimizer=OPTIMIZERS[optimizer],
        transition_lr=rate,
    )


def trainer(folder: str, epochs: int, *callbacks: Any) -> Trainer:
    """A trainer that says nothing."""
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def estimate(data: MNISTDataModule, epochs: int) -> dict[str, Any]:
    """Both stages with the anchor estimate, which stays as it is."""
    model, callback = classifier(ForwardCorrection()), EstimateTransitionCallback(epochs, estimator=AnchorEstimator)
    with tempfile.TemporaryDirectory() as folder:
        fit = trainer(folder, 2 * epochs, callback)
        fit.fit(model, data)
        first, last, *_ = evaluate_fit(fit, model, data)
    assert callback.transition is not None
    return {
        "transition": callback.transition.tolist(),
        "stage_one": first.test_accuracy,
        "last": last.test_accuracy,
        "transition_error": last.transition_error,
    }


def learn(
    correction: Correction, data: MNISTDataModule, epochs: int, rate: float, start: Tensor | None, optimizer: str
) -> dict[str, Any]:
    """Train with a T that is learnt, from its own start or from an estimate."""
    if start is not None:
        try:
            correction.set_transition(start)
        except ValueError as error:
            return {"refused": str(error)}
    model = classifier(correction, rate, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        fit = trainer(folder, epochs)
        fit.fit(model, data)
        noisy = float(fit.callback_metrics["val_loss"])
        (last, *_) = evaluate_fit(fit, model, data)
    return {"val_loss": noisy, "last": last.test_accuracy, "transition_error": last.transition_error}


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with MNIST/raw (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a stage")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "learnt.json")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        runs = json.loads(arguments.output.read_text())["runs"]

    def keep(run: dict[str, str | float], result: dict[str, Any]) -> dict[str, Any]:
        runs.append(run | result)
        content = {"environment": environment(), "epochs_a_stage": arguments.epochs, "runs": runs}
        write_json(arguments.output, content)
        return runs[-1]

    def known(run: dict[str, str | float]) -> dict[str, Any] | None:
        return next((done for done in runs if run.items() <= done.items()), None)

    for noise, drawn in NOISES.items():
        data = MNISTDataModule(arguments.data_dir, noise=drawn, noise_seed=0, seed=0)
        run: dict[str, str | float] = {"noise": noise, "T": "anchor estimate", "start": "estimate"}
        anchor = known(run) or keep(run, estimate(data, arguments.epochs))
        data.setup("fit")
        assert data.transition is not None
        starts: dict[str, Tensor | None] = {"none": None, "estimate": torch.tensor(anchor["transition"])}
        if noise == "asymmetric 0.6":
            for optimizer in OPTIMIZERS:
                starts[f"near the truth, {optimizer}"] = 0.96 * data.transition + 0.04 / 10
        for start, value in starts.items():
            optimizer = start.rpartition(", ")[2] if "near the truth" in start else "Adagrad"
            for name in CORRECTIONS if "near the truth" not in start else ("NoiseAdaptation",):
                for rate, pull in ALONE if value is None else ON:
                    run = {"noise": noise, "T": name, "start": start, "transition_lr": rate, "pull": pull}
                    if known(run) is None:
                        result = learn(CORRECTIONS[name](pull), data, arguments.epochs, rate, value, optimizer)
                        if value is not None:
                            result["start_error"] = float(relative_l1_error(value, data.transition))
                        print(keep(run, result), flush=True)

    rows = []
    for noise in NOISES:
        (fixed,) = [run for run in runs if (run["noise"], run["T"]) == (noise, "anchor estimate")]
        rows.append([noise, "none (cross-entropy, least val_loss)", "-", "-", "-", f"{100 * fixed['stage_one']:.2f}"])
        rows.append([noise, *_cells(fixed)])
        for start in ("none", "estimate", "near the truth, Adagrad", "near the truth, Adam"):
            for name in CORRECTIONS:
                found = [run for run in runs if (run["noise"], run["T"], run["start"]) == (noise, name, start)]
                trained = [run for run in found if "val_loss" in run]
                best = sorted(trained, key=lambda run: run["val_loss"])[:1]
                shown = found if "near the truth" in start else best
                rows += [[noise, *_cells(run)] for run in (shown if trained else found[:1])]
    header = ["noise", "T", "begins from", "transition_lr, pull", "error of T", "clean test %, last epoch"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


def _cells(run: dict[str, Any]) -> list[str]:
    start = run["start"] + (f" ({run['start_error']:.3f})" if "start_error" in run else "")
    if "refused" in run:
        return [run["T"], start, "-", "refused", "-"]
    chosen = f"{run['transition_lr']}, {run['pull']:g}" if "pull" in run else "-"
    return [run["T"], start, chosen, f"{run['transition_error']:.3f}", f"{100 * run['last']:.2f}"]


if __name__ == "__main__":
    main()
