"""Predictions of every sample by a corrected network that was trained without it."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info

from noisylightning import internals
from noisylightning.errors import NotReady
from noisylightning.estimators import within_fit
from noisylightning.phases.base import Fit, Phase
from noisylightning.phases.engine import RunPhases
from noisylightning.phases.estimation import predict_first_two
from noisylightning.phases.folds import FoldsPhase, Plan, whole
from noisylightning.predictions import Predictions


class HeldOutPhase(FoldsPhase):
    """Train K networks with the loss as it is, each without one of K parts of the data, and let it predict that part.

    As :class:`FoldsPhase`, but with the T that the correction has, and the fit ends with the last network.

    Args:
        folds: Number of parts K.
        epochs: Epochs of each network.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``.

    Raises:
        ValueError: If there are fewer than two parts.
    """

    name = "held out"

    def __init__(self, folds: int, epochs: int, predict: within_fit.Predict) -> None:
        super().__init__(Plan(folds=folds), predict)
        self._epochs = epochs
        self.predictions: Predictions | None = None  # once all are there

    def epochs(self, fit: Fit) -> int:
        """Epochs of each network."""
        return self._epochs

    def extra_epochs(self, fit: Fit) -> int:
        """Return the epochs of the network that comes next; the first has the fit's own."""
        return super().extra_epochs(fit) if self.repeats(fit) else 0

    def _begin_network(self, fit: Fit) -> None:
        assert fit.memory.initial is not None
        fit.module.load_state_dict(fit.memory.initial)
        rank_zero_info(f"Part {self._fold + 1} of {self.folds}: training on the others, {self.epochs(fit)} epochs.")
        self._restart(fit)

    def end(self, fit: Fit) -> None:
        """Let the network predict the part that it has not seen."""
        super().end(fit)
        if not self.repeats(fit):
            self.predictions = whole(fit.memory.out_of_fold)

    def on_train_end(self, fit: Fit) -> None:
        """Let the last network predict."""
        if not self.repeats(fit):
            self.end(fit)


class _Begin(Phase):
    """Nothing; a phase begins anew only after another."""

    name = "begin"
    trains = False


class _End(Phase):
    """End the fit, where the last network has stopped early."""

    name = "end"
    trains = False

    def begin(self, fit: Fit) -> None:
        """Ask for the end."""
        fit.trainer.should_stop = True


def held_out_predictions(
    trainer: Trainer,
    model: LightningModule,
    datamodule: Any,
    folds: int,
    epochs: int,
    predict: within_fit.Predict = predict_first_two,
) -> Predictions:
    """Train K networks with the module's loss, each without one of K parts of the data, and let it predict that part.

    Each begins from the module's weights, with an optimizer and a schedule of its own; validation samples are predicted
    too. The trainer's other callbacks take part, but for those that checkpoint, stop or run phases.

    Args:
        trainer: Trains them, one after the other.
        model: The module, with T in its correction.
        datamodule: Its data.
        folds: Number of parts K.
        epochs: Epochs of each network.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``.

    Returns:
        Logits of p(clean | x) for every sample, in the order of ``index``, all held out; the same on every process.

    Raises:
        ValueError: If there are fewer than two parts, or the data cannot be parted.
    """
    phase = HeldOutPhase(folds, epochs, predict)
    left_out = (RunPhases, ModelCheckpoint, EarlyStopping)
    peers = internals.callbacks(trainer)
    peers[:] = [peer for peer in peers if not isinstance(peer, left_out)] + [RunPhases([_Begin(), phase, _End()])]
    trainer.fit_loop.max_epochs = epochs
    trainer.fit(model, datamodule=datamodule)
    if phase.predictions is None:
        raise NotReady("The fit was interrupted before every part of the data was predicted: start again.")
    return phase.predictions
