"""The command ``audit``."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning import internals
from noisylightning.audit import (
    Audit,
    audit_predictions,
    audit_with_trainer,
    print_audit,
    thumbnails_of,
    write_audit,
)
from noisylightning.audit.with_trainer import correction_of, standard_error_of
from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.held_out_audit import audit_held_out
from noisylightning.predictions import Predictions


def audit_file(
    predictions: Path,
    transition: Path | None,
    standard_error: Path | None,
    probs_of: Literal["clean", "noisy"],
    level: float,
) -> Audit:
    """Audit the labels in a file of predictions, see :func:`~noisylightning.audit.audit_predictions`.

    Args:
        predictions: The ``.npz`` or ``.parquet`` file.
        transition: File of T.
        standard_error: File of its standard errors, ``.npy``; None for none.
        probs_of: What the file's probabilities are of.
        level: Probability that the intervals are to cover.
    """
    if transition is None:
        raise BadValue("An audit of a file of predictions needs T: give --transition FILE.")
    loaded = Predictions.load(predictions)
    error = None if standard_error is None else _array(standard_error)
    return audit_predictions(loaded, transition, probs_of=probs_of, standard_error=error, level=level, progress=True)


def audit_checkpoint(
    trainer: Trainer,
    model: LightningModule,
    datamodule: Any,
    ckpt_path: str,
    standard_error: Path | None,
    level: float,
    weights_only: bool,
    folds: int | None,
) -> Audit:
    """Audit the training data by a checkpoint, or by networks trained anew with its T.

    Args:
        trainer: Runs the pass, or trains the networks.
        model: The module, with its first weights.
        datamodule: The data.
        ckpt_path: The checkpoint.
        standard_error: File of T-hat's standard errors, ``.npy``; None for those that the checkpoint has.
        level: Probability that the intervals are to cover.
        weights_only: Whether the checkpoint may hold plain data only.
        folds: Number of parts, each judged by a network trained without it; None for the checkpoint's own network.
    """
    saved = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only)["state_dict"]
    own = {name.removeprefix("correction."): value for name, value in saved.items() if name.startswith("correction.")}
    correction = getattr(model, "correction", None)
    if correction is not None:  # only T: a loss may remember labels
        parts = {name: value for name, value in own.items() if name.split(".")[0] == "transition"}
        correction.load_state_dict(parts, strict=False)
    transition = correction_of(model).transition
    assert transition is not None
    error = standard_error_of(ckpt_path, transition) if standard_error is None else _array(standard_error)
    if folds is None:
        return audit_with_trainer(trainer, model, datamodule, ckpt_path, error, level, weights_only)
    return audit_held_out(trainer, model, datamodule, folds, _epochs(trainer), error, level)


def publish_audit(trainer: Trainer, audit: Audit, output: Path, datamodule: Any = None) -> None:
    """Write an audit's files, and print how many labels are wrong; on one process.

    Args:
        trainer: The trainer of the command.
        audit: The audit.
        output: The folder.
        datamodule: The data, whose images the page shows; None where there is none.
    """
    if trainer.is_global_zero:
        dataset = None if datamodule is None else datamodule.estimation_dataloader().dataset
        inputs = getattr(dataset, "inputs", None)  # before the network's transform, by their places
        write_audit(audit, output, None if inputs is None else thumbnails_of(inputs))
        print_audit(audit)
    rank_zero_info(f"Audit of {len(audit.table):,} labels saved in {output}.")


def _epochs(trainer: Trainer) -> int:
    """Return the epochs of stage two: those of a network that is trained with T from the beginning."""
    before = 0
    for callback in internals.callbacks(trainer):
        if isinstance(callback, EstimateTransitionCallback):
            before = callback.stage_one_epochs or 0
    if trainer.max_epochs is None or trainer.max_epochs - before < 1:
        raise BadValue(
            "The networks that leave out a part of the data need a number of epochs: set --trainer.max_epochs."
        )
    return trainer.max_epochs - before


def _array(path: Path) -> Tensor:
    if not path.is_file():
        raise NoSuchFile(f"There are no standard errors at {path}: correct standard_error (--standard_error).")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise BadValue(
            f"{path} is no .npy file of numbers ({error}): correct standard_error (--standard_error)."
        ) from error
