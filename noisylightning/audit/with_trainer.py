"""An audit of the training data, by a checkpoint and a prediction pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from noisylightning import internals
from noisylightning.audit.tally import Audit, Tally, conclude
from noisylightning.corrections import Correction
from noisylightning.errors import BadType, BadValue
from noisylightning.models import record_features
from noisylightning.predictions.collect import places
from noisylightning.predictions.gather import gather_rows


class _Feed(BasePredictionWriter):
    """Tallies the predictions of a pass; a writer, since Lightning tells those each sample's place."""

    def __init__(self, num_classes: int, index: Tensor) -> None:
        super().__init__("batch")
        self.tally = Tally(num_classes)
        self.index = index
        self.recording = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.correction = correction_of(pl_module)
        if self.correction.needs_features:
            network = getattr(pl_module, "backbone", pl_module)
            self._features = self.recording.enter_context(record_features(network))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            raise BadType(
                "An audit needs batches (inputs, labels, ...) with one label a sample, integers: let"
                " estimation_dataloader() give such pairs."
            )
        if not isinstance(prediction, Tensor) or batch_indices is None or len(batch_indices) != len(prediction):
            raise BadType(
                f"An audit needs p(clean | x) of each sample of a batch, shape (N, C), from"
                f" {type(pl_module).__name__}.predict_step, but it returned a {type(prediction).__name__}."
            )
        index = self.index[torch.as_tensor(batch_indices)].to(prediction.device)
        features = self._features(len(prediction)) if self.correction.needs_features else None
        transition = self.correction.transition_at(features, index)
        self.tally.add(prediction.double().log(), labels.to(prediction.device), index, transition)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.recording.close()


def correction_of(model: LightningModule) -> Correction:
    """Return a module's correction, by whose T its labels can be judged.

    Args:
        model: The module, with its weights.

    Raises:
        ValueError: If it has none, or one without a T.
    """
    correction = getattr(model, "correction", None)
    advice = (
        "audit a checkpoint of a network that was trained with T in its loss, such as last.ckpt of a fit in two stages;"
        " or held-out predictions, by --predictions and --transition"
    )
    if not isinstance(correction, Correction) or not correction.uses_transition:
        raise BadValue(f"{type(model).__name__} was trained without T, and knows the labels by heart: {advice}.")
    if correction.known_transition().is_identity:
        raise BadValue(
            f"The T of this {type(correction).__name__} is the identity, by which no label is wrong: if a fit has found"
            " no T-hat better than none, take one as it is (EstimateTransitionCallback's rounds=0), which ranks labels"
            f" well all the same; else {advice}."
        )
    return correction


def audit_with_trainer(
    trainer: Trainer,
    model: LightningModule,
    datamodule: Any,
    ckpt_path: str | None = None,
    standard_error: Tensor | None = None,
    level: float = 0.95,
    weights_only: bool = True,
) -> Audit:
    """Audit the labels of the training data, its validation part included, by a network trained with T in its loss.

    A prediction pass of its own, under every strategy that predicts; each sample counts once on any number of
    processes, and every process gets the audit. Trusted samples, whose labels are right, take no part.

    Args:
        trainer: Runs the pass.
        model: A module with a correction, whose ``predict_step`` returns p(clean | x).
        datamodule: Data module with an ``estimation_dataloader()`` and ``num_classes``; its ``class_names`` and
            ``sample_names()`` are used if it has them.
        ckpt_path: Checkpoint to load; the weights as they are where it is left out.
        standard_error: That of each entry of T-hat, ``(C, C)``; None leaves T-hat's errors out of the intervals.
        level: Probability that the intervals are to cover.
        weights_only: Whether the checkpoint may hold plain data only.

    Returns:
        The audit.

    Raises:
        ValueError: If the data module has no such loader, or the module no T.
    """
    if not hasattr(datamodule, "estimation_dataloader"):
        raise BadValue(
            f"{type(datamodule).__name__} has no estimation_dataloader(): give it one, un-augmented and in order."
        )
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.estimation_dataloader()
    index, _ = places(datamodule, loader.dataset)
    feed = _Feed(datamodule.num_classes, index)
    internals.callbacks(trainer).append(feed)
    try:
        trainer.predict(model, loader, ckpt_path=ckpt_path, return_predictions=False, weights_only=weights_only)
    finally:
        internals.callbacks(trainer).remove(feed)
        feed.recording.close()
    parts = list(gather_rows(feed.tally.columns))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    sums = trainer.strategy.reduce(feed.tally.sums.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    names = sample_names(datamodule)
    return conclude(
        columns,
        sums,
        None if standard_error is None else correction_of(model).transition,
        standard_error,
        level,
        class_names=getattr(datamodule, "class_names", None),
        samples=None if names is None else [names[place] for place in columns["index"].tolist()],
    )


def sample_names(datamodule: Any) -> Sequence[str] | None:
    """Return the file name or text of each training sample, where the data module knows it."""
    found: Sequence[str] | None = datamodule.sample_names() if hasattr(datamodule, "sample_names") else None
    return found


def standard_error_of(ckpt_path: str | Path, transition: Tensor) -> Tensor | None:
    """Find the standard errors of T-hat that a fit's phases have left in its checkpoint.

    Args:
        ckpt_path: The checkpoint.
        transition: The T that they must be of.

    Returns:
        ``(C, C)``; None where there are none, or T is not T-hat any more.
    """
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    for state in checkpoint.get("callbacks", {}).values():
        memory = state.get("memory", {}) if isinstance(state, dict) else {}
        estimate, error = memory.get("transition"), memory.get("standard_error")
        if isinstance(estimate, Tensor) and isinstance(error, Tensor) and estimate.shape == transition.shape:
            same = torch.equal(estimate.to(transition.dtype), transition.cpu())
            return error if same else None
    return None
