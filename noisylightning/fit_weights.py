"""The weights that a fit leaves, one set after the other, and the model lent out to measure them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.internals import callbacks, share_buffers, snapshot
from noisylightning.module import NoisyLabelClassifier
from noisylightning.phases import RunPhases


@dataclass
class FitWeights:
    """One set of weights.

    Attributes:
        phase: The phase they were trained in.
        selected_by: The metric that they were the best by, or ``"last"``.
        epoch: The epoch they are of.
        state: The model's state.
    """

    phase: str
    selected_by: str
    epoch: int
    state: dict[str, Any]


def weights_of_fit(trainer: Trainer, model: NoisyLabelClassifier) -> Iterator[FitWeights]:
    """Yield stage one's weights, the last, and those that the fit's ModelCheckpoint selected: its choice is the last.

    Args:
        trainer: The trainer, after its fit.
        model: The model, as the fit left it.
    """
    last = snapshot(model)
    phase, first = _phase(trainer, model), stage_one(trainer)
    if first is not None:
        selected_by = first.monitor if first.estimate_from == "best" else "last"
        state = _load(model, first.stage_one_checkpoint)["state_dict"]
        yield FitWeights("noisy labels", selected_by, first.stage_one_epoch, state)
    yield FitWeights(phase, "last", trainer.current_epoch - 1, last)
    monitor: str | None = getattr(trainer.checkpoint_callback, "monitor", None)
    best: str = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if monitor and best:
        checkpoint = _load(model, best)
        yield FitWeights(phase, monitor, checkpoint["epoch"], checkpoint["state_dict"])


def _phase(trainer: Trainer, model: NoisyLabelClassifier) -> str:
    """Name the phase that the fit ended in, the last that began; a fit without phases is one."""
    running = [callback.phase for callback in callbacks(trainer) if isinstance(callback, RunPhases) and callback.phase]
    if running:
        return running[-1].name
    return "correction" if model.correction.uses_transition else "noisy labels"


def stage_one(trainer: Trainer) -> EstimateTransitionCallback | None:
    """Return the callback that kept the weights that T was estimated with."""
    for callback in callbacks(trainer):
        if isinstance(callback, EstimateTransitionCallback) and callback.stage_one_checkpoint:
            return callback
    return None


def _load(model: NoisyLabelClassifier, path: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.on_load_checkpoint(checkpoint)
    return checkpoint


def same_weights(trainer: Trainer, some: dict[str, Any], others: dict[str, Any]) -> bool:
    """Tell whether two states of a model are equal, on every process."""
    equal = some.keys() == others.keys() and all(
        torch.equal(value, others[name]) if isinstance(value, Tensor) else value == others[name]
        for name, value in some.items()
    )
    return trainer.strategy.reduce_boolean_decision(equal, all=True)


@contextmanager
def borrowed(trainer: Trainer, model: NoisyLabelClassifier) -> Iterator[None]:
    """Lend the model out for measuring: on its device, in evaluation; and give it back as it was."""
    state, training = snapshot(model), [(child, child.training) for child in model.modules()]
    device = model.device
    try:
        model.to(trainer.strategy.root_device).eval()
        share_buffers(trainer, model)  # batch statistics differ between processes until they are shared
        yield
    finally:
        model.load_state_dict(state)
        model.to(device)
        for child, flag in training:
            child.training = flag
