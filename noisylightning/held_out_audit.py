"""An audit by networks that are trained without the samples that they judge."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from noisylightning.audit import Audit, audit_predictions
from noisylightning.audit.with_trainer import correction_of, sample_names
from noisylightning.phases import held_out_predictions
from noisylightning.predictions import Predictions


def audit_held_out(
    trainer: Trainer,
    model: LightningModule,
    datamodule: Any,
    folds: int,
    epochs: int,
    standard_error: Tensor | None = None,
    level: float = 0.95,
) -> Audit:
    """Audit the labels of the training data by K networks, each trained with T and without one of K parts of it.

    So no network knows by heart the labels that it judges.

    Args:
        trainer: Trains them, one after the other.
        model: The module, with its first weights, and T in its correction.
        datamodule: Its data.
        folds: Number of parts K.
        epochs: Epochs of each network.
        standard_error: That of each entry of T-hat, ``(C, C)``; None leaves T-hat's errors out of the intervals.
        level: Probability that the intervals are to cover.

    Returns:
        The audit.

    Raises:
        ValueError: If the module has no T, or the data cannot be parted.
    """
    transition = correction_of(model).known_transition()
    found = held_out_predictions(trainer, model, datamodule, folds, epochs)
    names = sample_names(datamodule)
    model.cpu()
    return audit_predictions(
        Predictions(
            found.logits,
            found.noisy_labels,
            found.index,
            found.held_out,
            class_names=list(map(str, datamodule.class_names)) if hasattr(datamodule, "class_names") else None,
        ),
        transition,
        standard_error=standard_error,
        level=level,
        samples=None if names is None else [names[place] for place in found.index.tolist()],
    )
