"""The last phase of a noisy-label recipe: cross-entropy on a small set whose labels are right."""

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction, NoCorrection
from noisylightning.errors import BadValue
from noisylightning.transition import DenseTransition


class FineTuneOnTrusted(Callback):
    """End a fit with the plain base loss on the trusted set.

    From epoch ``from_epoch`` on the model trains, from the weights it has, on the data module's
    ``trusted_train_dataloader()`` instead of the noisy data, with T = identity, a new optimizer and a new schedule,
    which spans the epochs that are left. Noisy validation goes on with T as it was. With EstimateTransitionCallback
    before it this is the recipe that gave Patrini et al. (CVPR 2017) their best result on Clothing1M.

    The module keeps its correction in ``correction``, as :class:`~noisylightning.NoisyLabelClassifier` does.

    Args:
        from_epoch: First epoch of fine-tuning, below the trainer's ``max_epochs``.
        lr_factor: Factor on the learning rates that the module's ``configure_optimizers`` gives.

    Raises:
        ValueError: If an argument is out of bounds, or the data module has no trusted set.

    Example:
        >>> from noisylightning import EstimateTransitionCallback
        >>> from pytorch_lightning import Trainer
        >>> callbacks = [EstimateTransitionCallback(stage_one_epochs=5), FineTuneOnTrusted(from_epoch=10)]
        >>> trainer = Trainer(max_epochs=12, callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(self, from_epoch: int, lr_factor: float = 1.0) -> None:
        if from_epoch < 1:
            raise BadValue(f"from_epoch must be at least 1, got {from_epoch}.")
        if not lr_factor > 0:
            raise BadValue(f"lr_factor must be positive, got {lr_factor}.")
        self.from_epoch = from_epoch
        self.lr_factor = lr_factor
        self.began = False
        self._span: tuple[int, int] | None = None
        self._first: dict[str, Any] | None = None
        self._noisy_transition: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done."""
        if stage != "fit":
            return
        internals.refuse_unsupported(trainer)
        internals.plan_schedules(trainer)
        if trainer.max_epochs not in (None, -1) and self.from_epoch >= trainer.max_epochs:
            raise BadValue(
                f"from_epoch = {self.from_epoch} must be below the trainer's max_epochs = {trainer.max_epochs}:"
                " fine-tuning takes the last epochs."
            )
        correction = getattr(pl_module, "correction", None)
        dense = isinstance(correction, Correction) and isinstance(correction.T, DenseTransition)
        if not dense and not isinstance(correction, NoCorrection):
            raise BadValue(
                f"FineTuneOnTrusted needs a correction with a dense T at {type(pl_module).__name__}.correction."
            )
        if internals.data_attribute(trainer, "trusted_train_dataloader") is None:
            raise BadValue(
                "FineTuneOnTrusted needs a data module with trusted_train_dataloader(): the noisylightning ones have it"
                " once `trusted` says which samples are known to be right."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail early where the trusted set is empty; keep the first states of the checkpoints and the precision."""
        trainer.datamodule.trusted_train_dataloader()  # type: ignore[attr-defined]
        if self._first is None:
            self._first = internals.first_state(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the trusted set up again where a fit resumes within the phase."""
        if self.began:
            internals.train_on(trainer, trainer.datamodule.trusted_train_dataloader())  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase at its epoch; Lightning has saved, logged and scheduled all before by now."""
        if self.began or trainer.current_epoch < self.from_epoch:
            return
        assert self._first is not None
        self.began = True
        internals.train_on(trainer, trainer.datamodule.trusted_train_dataloader())  # type: ignore[attr-defined]
        self._span = internals.rest_of_the_fit(trainer)
        internals.restart(trainer, pl_module, self._first)
        self._scale_rates(trainer)
        rank_zero_info(f"Fine-tuning: the plain loss on the trusted samples, from epoch {trainer.current_epoch}.")

    def schedule_span(self, trainer: Trainer) -> tuple[int, int] | None:
        """Return the epochs and steps that a schedule built now has to span; None where another callback knows."""
        alone = not any(hasattr(peer, "stage_one_epochs") for peer in internals.callbacks(trainer))
        return (self.from_epoch, trainer.max_steps) if self._span is None and alone else self._span

    def _scale_rates(self, trainer: Trainer) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.lr_factor
                if "initial_lr" in group:
                    group["initial_lr"] *= self.lr_factor
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [self.lr_factor * rate for rate in config.scheduler.base_lrs]

    # T belongs to the noisy labels: training on trusted ones goes without it, validation and checkpoints with it.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set T aside before the first trusted batch."""
        if self.began and self._noisy_transition is None and pl_module.correction.uses_transition:  # type: ignore[union-attr]
            transition: Tensor = pl_module.correction.transition  # type: ignore[union-attr, assignment]
            self._noisy_transition = transition.clone()
            pl_module.correction.set_transition(torch.eye(len(transition)).to(transition))  # type: ignore[union-attr, operator]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put T back."""
        self._put_back(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put T back, where no validation did, before checkpoints are saved."""
        self._put_back(pl_module)

    def _put_back(self, module: LightningModule) -> None:
        if self._noisy_transition is not None:
            module.correction.set_transition(self._noisy_transition)  # type: ignore[union-attr, operator]
            self._noisy_transition = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed fit needs."""
        return {"began": self.began, "from_epoch": self.from_epoch, "span": self._span, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a fit.

        Raises:
            ValueError: If the checkpoint was written with another ``from_epoch``.
        """
        if state_dict["from_epoch"] != self.from_epoch:
            raise BadValue(
                f"The checkpoint was written with FineTuneOnTrusted(from_epoch={state_dict['from_epoch']}), but this"
                f" one has from_epoch={self.from_epoch}: resume with the same arguments, or start a new fit."
            )
        self.began = state_dict["began"]
        self._span = state_dict["span"]
        self._first = state_dict["first"]
