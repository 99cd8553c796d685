"""Stage one: training on the noisy labels as they are, until the network's predictions tell T."""

import math
from typing import Any, Literal

from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from noisylightning import internals
from noisylightning.errors import BadValue
from noisylightning.phases.base import Chosen, Fit, Phase


class NoisyLabelsPhase(Phase):
    """Train on the noisy labels with T = identity, where every correction is its plain base loss, and choose weights.

    It is over at the first of: ``stage_one_epochs``; ``stage_one_steps`` optimizer steps; ``patience`` validations
    without a better ``monitor``; a request to stop from the trainer's own EarlyStopping. With neither epochs nor steps
    given the fit is made twice as long, and this is its first half.

    Args:
        stage_one_epochs: Its epochs, below the trainer's ``max_epochs``.
        stage_one_steps: Its optimizer steps, which may end within an epoch.
        patience: Validations without improvement after which it ends early.
        estimate_from: Weights that it leaves: the ``"best"`` by ``monitor``, or the ``"last"``.
        monitor: Metric on noisy validation data that says which weights are best.
        mode: Whether the best is the ``"max"`` or the ``"min"`` of ``monitor``.

    Raises:
        ValueError: If an argument is out of bounds.
    """

    name = "noisy labels"

    def __init__(
        self,
        stage_one_epochs: int | None = None,
        stage_one_steps: int | None = None,
        patience: int | None = None,
        estimate_from: Literal["best", "last"] = "best",
        monitor: str = "val_loss",
        mode: Literal["max", "min"] = "min",
    ) -> None:
        for name, value in (
            ("stage_one_epochs", stage_one_epochs),
            ("stage_one_steps", stage_one_steps),
            ("patience", patience),
        ):
            if value is not None and value < 1:
                raise BadValue(f"{name} must be at least 1, got {value}.")
        if estimate_from not in ("best", "last"):
            raise BadValue(f"estimate_from must be one of 'best', 'last', got {estimate_from!r}.")
        if mode not in ("max", "min"):
            raise BadValue(f"mode must be one of 'max', 'min', got {mode!r}.")
        if ("acc" in monitor.lower() and mode == "min") or ("loss" in monitor.lower() and mode == "max"):
            other = "max" if mode == "min" else "min"
            raise BadValue(f"mode={mode!r} would choose the weights of the worst {monitor!r}: pass mode={other!r}.")
        self.stage_one_epochs = stage_one_epochs
        self.stage_one_steps = stage_one_steps
        self.patience = patience
        self.estimate_from = estimate_from
        self.monitor = monitor
        self.mode = mode
        self._best_score: float | None = None
        self._validations_since_best = 0
        self._stop_requested = False
        self._doubled: tuple[int | None, int | None] | None = None  # the length of each half of a doubled fit

    def setup(self, fit: Fit) -> None:
        """Refuse a fit that leaves no room for what comes after; double one that says no end of this phase."""
        trainer, dev_batches = fit.trainer, internals.dev_batches(fit.trainer)
        if self.stage_one_epochs is None and self.stage_one_steps is None and not dev_batches:
            self._doubled = self._doubled or internals.double_length(trainer)
        if dev_batches:
            if dev_batches == 1:
                rank_zero_warn("fast_dev_run=1 has one batch, which runs stage one alone; fast_dev_run=2 runs both.")
            return
        for name, own, whole, limit in (
            ("stage_one_epochs", self.stage_one_epochs, "max_epochs", trainer.max_epochs),
            ("stage_one_steps", self.stage_one_steps, "max_steps", trainer.max_steps),
        ):
            if own is not None and limit is not None and limit != -1 and own >= limit:
                raise BadValue(
                    f"{name} = {own} must be below the trainer's {whole} = {limit}: stage two takes what stage one"
                    " leaves."
                )

    def take_up(self, fit: Fit) -> None:
        """Say that it begins, or goes on."""
        trainer, dev_batches = fit.trainer, internals.dev_batches(fit.trainer)
        if self.estimate_from == "best" and not trainer.enable_validation and not dev_batches:
            raise BadValue(
                "estimate_from='best' chooses weights by noisy validation data, but this fit has none: pass a"
                " validation loader, or estimate_from='last'."
            )
        epochs, steps = self._limits(trainer)
        if steps is not None and not dev_batches and trainer.estimated_stepping_batches <= steps:
            raise BadValue(
                f"stage_one_steps = {steps} must be below the {trainer.estimated_stepping_batches} optimizer steps of"
                " the whole fit: stage two takes the steps that stage one leaves."
            )
        length = f"up to epoch {epochs - 1}" if epochs is not None else f"{steps} steps"
        rank_zero_info(f"Stage one: training on the noisy labels with T = identity, {length}.")

    def span(self, fit: Fit) -> tuple[int, int]:
        """Return its own length, as far as it is given; the fit's for the rest."""
        epochs, steps = self._limits(fit.trainer)
        return epochs or fit.end, steps or fit.trainer.max_steps

    def is_over(self, fit: Fit) -> bool:
        """Tell whether one of its ends has come; within an epoch only its steps count."""
        epochs, steps = self._limits(fit.trainer)
        if steps is not None and fit.trainer.global_step >= steps:
            return True
        return not fit.within_epoch and (
            self._stop_requested
            or (epochs is not None and fit.trainer.current_epoch >= epochs)
            or (self.patience is not None and self._validations_since_best >= self.patience)
        )

    def _limits(self, trainer: Trainer) -> tuple[int | None, int | None]:
        """Return its epochs and steps; a fast_dev_run of several batches is cut in two."""
        if internals.dev_batches(trainer):
            return None, max(1, internals.dev_batches(trainer) // 2)
        return self._doubled or (self.stage_one_epochs, self.stage_one_steps)

    def end(self, fit: Fit) -> None:
        """Leave the chosen weights, and how many epochs it took."""
        fit.memory.stage_one_epochs = max(1, fit.trainer.current_epoch - fit.added)
        if self.estimate_from == "last" or internals.dev_batches(fit.trainer):
            weights = internals.judged_weights(fit.trainer, fit.module)
            origin = f"weights after {fit.trainer.global_step} steps"
            accuracy = None if fit.within_epoch else self._accuracy(fit.trainer)  # else it is of weights before
            fit.memory.chosen = Chosen(weights, fit.trainer.current_epoch - 1, origin, accuracy)
        elif fit.memory.chosen is None:
            raise BadValue(
                f"estimate_from='best' has met no {self.monitor!r} in stage one: validate at least once before its end,"
                " or pass estimate_from='last'."
            )

    def on_validation_end(self, fit: Fit) -> None:
        """Keep the weights that noisy validation data likes best."""
        trainer = fit.trainer
        if trainer.sanity_checking or not (self.estimate_from == "best" or self.patience):
            return
        if self.monitor not in trainer.callback_metrics:
            raise BadValue(
                f"monitor={self.monitor!r} chooses stage one's best weights, but validation logged only"
                f" {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}: name one of these."
            )
        # One score for all: a metric that is not reduced differs between processes.
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        best = self._best_score
        better = best is None or (score > best if self.mode == "max" else score < best)
        if not better or math.isnan(score):
            self._validations_since_best += 1
            return
        self._best_score, self._validations_since_best = score, 0
        if self.estimate_from == "best":
            epoch = trainer.current_epoch
            origin = f"epoch {epoch} with {self.monitor} {score:.4f}"
            weights = internals.judged_weights(trainer, fit.module)
            fit.memory.chosen = Chosen(weights, epoch, origin, self._accuracy(trainer))

    def _accuracy(self, trainer: Trainer) -> float | None:
        """Return the accuracy that the last validation logged, by our name for it or as the monitor."""
        for name in ("val_accuracy", self.monitor):
            if "acc" in name.lower() and name in trainer.callback_metrics:
                value = float(trainer.callback_metrics[name])
                return value if 0 <= value <= 1 else None
        return None

    def hears_stop(self, fit: Fit) -> bool:
        """Take early stopping's request to stop as the end of the phase."""
        self._stop_requested = True
        return True

    def on_train_end(self, fit: Fit) -> None:
        """Say so where the fit ended before T was estimated."""
        if not internals.dev_batches(fit.trainer):
            rank_zero_warn("The fit ended in stage one: T was not estimated, and no corrected loss was used.")

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments."""
        names = ("stage_one_epochs", "stage_one_steps", "patience", "estimate_from", "monitor", "mode")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        return {
            "best_score": self._best_score,
            "validations_since_best": self._validations_since_best,
            "stop_requested": self._stop_requested,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        self._best_score = state["best_score"]
        self._validations_since_best = state["validations_since_best"]
        self._stop_requested = state["stop_requested"]
