"""A two-stage fit on several CPU processes, run as a script by test_distributed.py; each rank writes what it saw."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from synchronized_norm import SynchronizeNorms
from toy import CLASSES, FeatureMeans, ToyData, adam, anchored, classifier, counted, trainer

from noisylightning import ForwardCorrection, HeadFirst, MemorisationStopping, Mixup
from noisylightning.internals import before_training_steps
from noisylightning.phases import RefinementPhase, lost
from noisylightning.transition import NoiseAdaptation, from_flips


class Recorder:
    """Predicts, and keeps what went through."""

    def __init__(self, rank_that_fails: int | None) -> None:
        self.inputs: list[torch.Tensor] = []
        self.rank_that_fails = rank_that_fails

    def __call__(self, module, batch):
        logits = module(batch[0])
        if module.trainer.global_step > 0:  # no rehearsal
            self.inputs.append(batch[0].cpu())
            logits = logits * float("nan") if module.global_rank == self.rank_that_fails else logits
        return logits, batch[1]


class BatchStatistics(Callback):
    """Keeps what the batch norm holds before each epoch's first batch, and the name of its class."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []
        self.layer = ""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            layer = pl_module.backbone[1]
            self.layer = type(layer).__name__
            self.means.append(layer.running_mean.cpu().clone())


class NoteShares(Callback):
    """Keeps which shares the labels of each mixed batch have."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_train_start(self, trainer, pl_module) -> None:
        before_training_steps(pl_module, self.note)

    def note(self, batch):
        if batch[1].is_floating_point():
            self.found.append(batch[1].unique())
        return batch


def note_judged() -> list[dict[str, Any]]:
    """Keep of each candidate that is judged what its networks predict, T before and T after."""
    notes: list[dict[str, Any]] = []
    judge = RefinementPhase._refined

    def noted(phase, candidate, parts):
        found = judge(phase, candidate, parts)
        notes.append(
            {
                "parts": [vars(part) for part in parts],
                "before": candidate.transition,
                "after": found.transition,
                "standard_error": found.standard_error,
                "weights": phase._trained,
            }
        )
        return found

    RefinementPhase._refined = noted
    return notes


class Alike(FeatureMeans):
    """Two classes that noisy labels hardly tell apart."""

    def compute(self):
        return from_flips(CLASSES, {0: 1, 1: 0}, 0.45)


def note_looks() -> list[torch.Tensor]:
    """Keep what is counted to see whether a class was lost; the first time one is."""
    looks: list[torch.Tensor] = []

    def noted(transition, shares, predicted):
        looks.append(torch.stack([shares, predicted]))
        return {1: 1.0} if len(looks) == 1 else {}

    lost.lost_classes = noted
    return looks


def main() -> None:
    warnings.simplefilter("ignore")
    for spec in json.loads(sys.argv[1]):  # one fit after the other, in the same processes
        fit(spec)


def fit(spec: dict[str, Any]) -> None:
    folder = Path(spec["folder"])
    recorder = Recorder(spec.get("rank_that_fails"))
    refined = counted if spec.get("refined") else None
    alike = Alike if spec.get("alike") else None
    looks = note_looks() if alike else []
    callback = anchored(
        stage_one_epochs=2,
        estimator=refined or alike or FeatureMeans,  # FeatureMeans's T-hat is AnchorEstimator's
        estimate_from=spec.get("estimate_from", "best"),
        predict=recorder,
    )
    every = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1)
    norm = spec.get("norm")  # None, "batch", "synchronized", or "torch" for torch's SyncBatchNorm
    statistics = BatchStatistics()
    low = torch.full((CLASSES, CLASSES), 1 / CLASSES)  # a T that allows little
    stops = [MemorisationStopping(0.0, low)] if spec.get("stops") else []
    shares = NoteShares()
    mixed = [Mixup(), HeadFirst(1), shares] if spec.get("mixed") else []
    run = trainer(
        folder,
        [callback, every, *([statistics] if norm else []), *stops, *mixed],
        max_epochs=4,
        enable_checkpointing=True,
        accelerator=spec.get("accelerator", "cpu"),
        devices=spec.get("devices", 2),
        num_nodes=spec.get("num_nodes", 1),
        strategy=spec.get("strategy", "ddp"),
        limit_val_batches=spec.get("limit_val_batches"),
        plugins=[SynchronizeNorms()] if norm == "synchronized" else None,
        sync_batchnorm=norm == "torch",
    )
    torch.manual_seed(0)
    correction = ForwardCorrection(NoiseAdaptation(CLASSES) if spec.get("learnt") else None, CLASSES)
    rate = 0.01 if spec.get("learnt") else None
    # Ranks that disagree at first.
    model = classifier(run.global_rank, dropout=0.3, optimizer=adam, correction=correction, transition_lr=rate)
    if norm:
        model.backbone.insert(1, torch.nn.BatchNorm1d(16))
    judged = note_judged() if refined else []
    run.fit(model, ToyData(num_train=spec.get("num_train", 97)), ckpt_path=spec.get("ckpt_path"), weights_only=True)
    seen = torch.cat(recorder.inputs) if recorder.inputs else torch.empty(0)
    torch.save(
        {
            "seen": seen,
            "transition": model.correction.transition.detach(),
            "callback": callback.transition,
            "feature_means": getattr(FeatureMeans, "means", torch.empty(0)),  # of no estimate that was resumed
            "weights": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
            "statistics": torch.stack(statistics.means) if norm else torch.empty(0),
            "state": model.state_dict(),
            "layer": statistics.layer,
            "candidates": judged,
            "epochs": run.current_epoch,
            "shares": torch.cat(shares.found) if shares.found else torch.empty(0),
            "looks": torch.stack(looks) if looks else torch.empty(0),
            "memorised": run.callback_metrics.get("train_memorised"),
        },
        folder / f"rank{run.global_rank}.pt",
    )
    assert model.correction.transition.shape == (CLASSES, CLASSES)


if __name__ == "__main__":
    main()
