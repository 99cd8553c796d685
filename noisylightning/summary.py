"""The closing table: what each stage has reached on noisy validation data and on the clean test set."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.box
import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.corrections import NoCorrection
from noisylightning.internals import callbacks
from noisylightning.module import NoisyLabelClassifier
from noisylightning.transition import relative_l1_error


@dataclass(frozen=True)
class Result:
    """What one set of weights has reached.

    Attributes:
        weights: Of which stage, and how chosen.
        loss: The loss they were trained with.
        epoch: The epoch they are of.
        val_accuracy: Accuracy of the noisy prediction on the noisy validation data.
        test_accuracy: Accuracy of p(clean | x) on the clean test set; None where there is no test set.
        transition_error: Relative L1 error of T in the loss; None where it uses no T or the true T is not known.
    """

    weights: str
    loss: str
    epoch: int
    val_accuracy: float | None
    test_accuracy: float | None
    transition_error: float | None


def summarize(trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule) -> list[Result]:
    """Test the last weights, the selected ones and stage one's after a fit; print the table and write ``summary.json``.

    Weights are selected by the trainer's ModelCheckpoint on noisy validation data; each is tested once.

    Args:
        trainer: The trainer, after its fit.
        model: The model, after its fit.
        data: The data module of the fit.

    Returns:
        One result for each set of weights.
    """
    folder = trainer.log_dir
    assert folder is not None
    two_stages = next((cb for cb in callbacks(trainer) if isinstance(cb, EstimateTransitionCallback)), None)
    stage = "training" if two_stages is None else f"stage {two_stages.stage}"
    results = [_evaluate(trainer, model, data, f"{stage}, last", trainer.current_epoch - 1)]
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        epoch = torch.load(best, map_location="cpu", weights_only=True)["epoch"]
        results.append(_evaluate(trainer, model, data, f"{stage}, selected", epoch, best))
    if two_stages is not None and two_stages.stage_one_checkpoint:
        epoch, checkpoint = two_stages.stage_one_epoch, two_stages.stage_one_checkpoint
        results.insert(0, _evaluate(trainer, model, data, f"stage 1, {two_stages.estimate_from}", epoch, checkpoint))
    _present(results, folder)
    return results


def _evaluate(
    trainer: Trainer,
    model: NoisyLabelClassifier,
    data: LightningDataModule,
    weights: str,
    epoch: int,
    checkpoint: str | None = None,
) -> Result:
    measured: dict[str, Any] = {}
    has_test = getattr(data, "has_test", True)
    for measure in (trainer.validate, trainer.test) if has_test else (trainer.validate,):
        measured |= measure(model, datamodule=data, ckpt_path=checkpoint, verbose=False)[0]
    true = getattr(data, "transition", None)  # known once the fit has set up the data
    corrected = not isinstance(model.correction, NoCorrection) and not weights.startswith("stage 1")
    used = model.correction.transition
    error = None
    if corrected and true is not None and isinstance(used, Tensor):
        error = float(relative_l1_error(used.cpu(), true))
    return Result(
        weights=weights,
        loss=type(model.correction if corrected else model.correction.loss).__name__,
        epoch=epoch,
        val_accuracy=measured.get("val_accuracy"),
        test_accuracy=measured.get("test_accuracy"),
        transition_error=error,
    )


@rank_zero_only
def _present(results: list[Result], folder: str) -> None:
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("weights", "loss", "epoch", "noisy val", "clean test", "T error"):
        table.add_column(column, justify="left" if column in ("weights", "loss") else "right", no_wrap=True)

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    for row in results:
        error = "-" if row.transition_error is None else f"{row.transition_error:.4f}"
        accuracies = percent(row.val_accuracy), percent(row.test_accuracy)
        table.add_row(row.weights, row.loss, str(row.epoch), *accuracies, error)
    console = Console()
    console.print(table)
    with written_whole(Path(folder) / "summary.json") as path:
        path.write_text(json.dumps([asdict(row) for row in results], indent=2) + "\n")
    console.print(f"Checkpoints, T-hat and summary.json are in {folder}", soft_wrap=True)
