"""Training on samples with noisy labels and on trusted ones together: what it needs, and its loader."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue


def refuse_joint(trainer: Trainer, module: LightningModule) -> None:
    """Stop, before any work is done, where the module or the data module has no way to train on both together.

    Args:
        trainer: The trainer of the fit.
        module: The module that it trains.

    Raises:
        ValueError: If the module has no correction of its own that uses T, or the data module no loader of both.
    """
    correction = getattr(module, "correction", None)
    if not isinstance(correction, Correction) or not correction.uses_transition:
        raise BadValue(
            f"train_on_trusted needs a correction with a T at {type(module).__name__}.correction, which the module"
            " tells which samples are trusted, as NoisyLabelClassifier does."
        )
    if internals.data_attribute(trainer, "joint_dataloader") is None:
        raise BadValue(
            "train_on_trusted needs a data module with joint_dataloader(): the noisylightning ones have it once"
            " `trusted` says which samples are known to be right."
        )


def joint_loader(trainer: Trainer) -> Any:
    """Return the data module's training loader of both.

    Args:
        trainer: The trainer of the fit.

    Raises:
        ValueError: If there are no trusted samples.
    """
    return trainer.datamodule.joint_dataloader()  # type: ignore[attr-defined]


def rehearse_joint(trainer: Trainer) -> None:
    """Read a first batch, so that what would fail in stage two fails before stage one; leave no trace.

    Args:
        trainer: The trainer of the fit.

    Raises:
        ValueError: If a batch does not tell which samples are trusted.
    """
    with isolate_rng():
        batch = next(iter(joint_loader(trainer)))
    if trusted_in(batch) is None:
        raise BadValue(
            f"{type(trainer.datamodule).__name__}.joint_dataloader() gives no batches"  # type: ignore[attr-defined]
            " (inputs, labels, index, trusted) with trusted bool, which tell whose label is right."
        )


def trusted_in(batch: Any) -> Tensor | None:
    """Return which samples of a batch are trusted, bool of shape ``(N,)``: its fourth part; None where none says it.

    Args:
        batch: What a loader gives.
    """
    found = batch[3] if isinstance(batch, list | tuple) and len(batch) > 3 else None
    return found if isinstance(found, Tensor) and found.dtype == torch.bool else None


def require_told(module: LightningModule) -> None:
    """Stop at the next training step if it does not tell the correction which samples are trusted.

    Args:
        module: The module, which may have a training step of its own.
    """
    correction = module.correction
    assert isinstance(correction, Correction)

    def look(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():  # a validation
            return
        handle.remove()
        if named.get("trusted") is None and len(given) < 5:
            raise BadValue(
                f"{type(module).__name__}.training_step does not tell its correction which samples are trusted, so"
                " their right labels would be corrected: call correction(logits, labels, trusted=batch[3])."
            )

    handle = correction.register_forward_pre_hook(look, with_kwargs=True)
