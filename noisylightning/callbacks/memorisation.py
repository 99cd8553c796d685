"""Stopping where a network begins to learn wrong labels by heart."""

import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning.corrections import Correction
from noisylightning.errors import BadValue
from noisylightning.functional.memorisation import accuracy_ceiling
from noisylightning.internals import callbacks
from noisylightning.phases import RunPhases, TrustedPhase, trusted_in
from noisylightning.transition import Transition, as_transition


class MemorisationStopping(EarlyStopping):
    r"""Stop where training accuracy on noisy labels passes the most that T allows without knowing labels by heart.

    A network that knows the clean class of every sample, and nothing of its label, agrees with a share
    :math:`\sum_i \pi_i \max_j T_{ij}` of the noisy labels (:func:`~noisylightning.functional.accuracy_ceiling`); one
    that agrees with more has learnt wrong labels. It looks once an epoch, needs no validation data, and says so when it
    stops.

    T is the correction's, from the epoch on that it has one: with EstimateTransitionCallback it ends stage two, and
    with it the fit, while stage one and the networks that refine T-hat go on as they would. With a ``transition`` given
    it ends stage one too, after which T-hat is estimated. Phases on trusted samples it leaves alone.

    Args:
        margin: By how much the accuracy must be above the ceiling.
        transition: T, a tensor ``(C, C)``, the path of a file or a :class:`~noisylightning.transition.Transition`, for
            a loss that uses none, or to have it from the first epoch on.
        monitor: The accuracy on noisy training labels, of the *noisy* prediction, as the module logs it each epoch.

    Raises:
        ValueError: If ``margin`` is no number from 0 to 1; when the fit starts, if there will be no T, or T depends on
            the sample; after the first epoch with T, if the module does not log ``monitor``.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[MemorisationStopping()], logger=False, enable_checkpointing=False)
    """

    # An EarlyStopping, since Lightning runs these after the module has logged and before checkpoints are saved, and
    # phases let its request end a stage and put its state back when they restart training.

    def __init__(
        self,
        margin: float = 0.01,
        transition: Tensor | Transition | str | Path | None = None,
        monitor: str = "train_accuracy",
    ) -> None:
        if not 0 <= margin < 1:
            raise BadValue(f"margin must be a difference of accuracies, from 0 to 1, got {margin}.")
        super().__init__(monitor, mode="max", patience=sys.maxsize, check_finite=False, check_on_train_epoch_end=True)
        self.margin = margin
        self.transition = None if transition is None else as_transition(transition)
        self._counts: Tensor | None = None  # of the epoch's labels

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a fit in which there will be no T."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        correction = correction_of(trainer, pl_module)
        if self.transition is None and (correction is None or not correction.uses_transition):
            raise BadValue(
                f"MemorisationStopping finds no T in {type(pl_module).__name__}'s loss, which would say what accuracy"
                " it allows: give it one (transition, --trainer.callbacks.transition FILE), or choose a correction that"
                " uses T."
            )
        transition = self.transition if self.transition is not None or correction is None else correction.T
        if transition is not None and not transition.is_class_conditional:
            raise BadValue(
                f"MemorisationStopping needs one T for all samples, but {type(transition).__name__} depends on the"
                " sample: give it another (transition, --trainer.callbacks.transition FILE)."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count labels anew."""
        self._counts = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count labels, which tell the shares of the classes."""
        transition = self._known(trainer, pl_module)
        if transition is None:
            return
        trusted = trusted_in(batch)
        labels = batch[1] if trusted is None else batch[1][~trusted]
        labels = labels.argmax(dim=1) if labels.is_floating_point() else labels.flatten()
        labels = labels[(labels >= 0) & (labels < transition.num_classes)]
        counts = labels.bincount(minlength=transition.num_classes)
        self._counts = counts if self._counts is None else self._counts + counts

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the accuracy is past the ceiling."""
        transition = self._known(trainer, pl_module)
        if transition is None or self._counts is None:
            return
        if self.monitor not in trainer.callback_metrics:
            raise BadValue(
                f"MemorisationStopping(monitor={self.monitor!r}) watches the noisy training accuracy, but the module"
                f" logged only {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}: name one of these, logged"
                " each epoch."
            )
        counts: Tensor = trainer.strategy.reduce(self._counts, reduce_op="sum")
        ceiling = float(accuracy_ceiling(transition.to_dense(), counts))
        self.stopping_threshold = ceiling + self.margin
        super().on_train_epoch_end(trainer, pl_module)
        accuracy = float(trainer.callback_metrics[self.monitor])
        if accuracy > self.stopping_threshold and trainer.should_stop:
            rank_zero_info(
                f"Stopping after epoch {trainer.current_epoch}: {self.monitor} {accuracy:.4f} is above {ceiling:.4f},"
                " the most that T allows to a network that learns no label by heart."
            )

    def _known(self, trainer: Trainer, module: LightningModule) -> Transition | None:
        """Return T where there is one, in a phase that is to be watched."""
        running = [peer.phase for peer in callbacks(trainer) if isinstance(peer, RunPhases) and peer.phase is not None]
        if running and (not running[-1].is_stage or isinstance(running[-1], TrustedPhase)):
            return None
        if self.transition is not None:
            return self.transition
        correction = correction_of(trainer, module)
        transition = None if correction is None else correction.T
        return None if transition is None or transition.is_identity else transition


def correction_of(trainer: Trainer, module: LightningModule) -> Correction | None:
    """Return the correction of the module, or the one that a callback brings to it."""
    for owner in (module, *callbacks(trainer)):
        found = getattr(owner, "correction", None)
        if isinstance(found, Correction):
            return found
    return None
