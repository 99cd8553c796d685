"""The last phase of a noisy-label recipe: the plain loss on a small set whose labels are right."""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue
from noisylightning.phases.base import Fit, Phase
from noisylightning.transition import DenseTransition


class TrustedPhase(Phase):
    """Go on from the weights that the module has, on the data module's ``trusted_train_dataloader()``.

    The optimizer and its schedule are new. T belongs to the noisy labels: training on trusted ones goes with the
    identity in its place, validation and checkpoints with T as it was.

    Args:
        from_epoch: Its first epoch, below the trainer's ``max_epochs``.
        lr_factor: Factor on the learning rates that the module's ``configure_optimizers`` gives.

    Raises:
        ValueError: If an argument is out of bounds; from the fit, if the data module has no trusted set.
    """

    name = "trusted"

    def __init__(self, from_epoch: int, lr_factor: float = 1.0) -> None:
        if from_epoch < 1:
            raise BadValue(f"from_epoch must be at least 1, got {from_epoch}.")
        if not lr_factor > 0:
            raise BadValue(f"lr_factor must be positive, got {lr_factor}.")
        self.begins_at = from_epoch
        self.lr_factor = lr_factor
        self._noisy_transition: Tensor | None = None  # while it is set aside

    def setup(self, fit: Fit) -> None:
        """Refuse what cannot work before any work is done."""
        max_epochs = fit.trainer.max_epochs
        assert self.begins_at is not None
        if max_epochs not in (None, -1) and self.begins_at >= max_epochs:
            raise BadValue(
                f"from_epoch = {self.begins_at} must be below the trainer's max_epochs = {max_epochs}: fine-tuning"
                " takes the last epochs."
            )
        correction = getattr(fit.module, "correction", None)
        fits = isinstance(correction, Correction) and (
            not correction.uses_transition or isinstance(correction.T, DenseTransition)
        )
        if not fits:
            raise BadValue(
                f"FineTuneOnTrusted needs a correction with a dense T at {type(fit.module).__name__}.correction."
            )
        if internals.data_attribute(fit.trainer, "trusted_train_dataloader") is None:
            raise BadValue(
                "FineTuneOnTrusted needs a data module with trusted_train_dataloader(): the noisylightning ones have it"
                " once `trusted` says which samples are known to be right."
            )

    def prepare(self, fit: Fit) -> None:
        """Fail early where the trusted set is empty."""
        self._loader(fit)

    def begin(self, fit: Fit) -> None:
        """Change the data, and make a new optimizer."""
        assert fit.memory.start is not None
        internals.train_on(fit.trainer, self._loader(fit))
        internals.restart(fit.trainer, fit.module, fit.memory.start)
        self._scale_rates(fit)
        rank_zero_info(f"Fine-tuning: the plain loss on the trusted samples, from epoch {fit.trainer.current_epoch}.")

    def take_up(self, fit: Fit) -> None:
        """Take the trusted set up again."""
        internals.train_on(fit.trainer, self._loader(fit))

    def goes_on(self) -> bool:
        """Tell that it goes on from the weights that the module has."""
        return True

    def _loader(self, fit: Fit) -> Any:
        return fit.trainer.datamodule.trusted_train_dataloader()  # type: ignore[attr-defined]

    def _scale_rates(self, fit: Fit) -> None:
        for optimizer in fit.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.lr_factor
                if "initial_lr" in group:
                    group["initial_lr"] *= self.lr_factor
        for config in fit.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [self.lr_factor * rate for rate in config.scheduler.base_lrs]

    def on_train_batch_start(self, fit: Fit) -> None:
        """Set T aside before the first trusted batch."""
        if self._noisy_transition is None and fit.module.correction.uses_transition:  # type: ignore[union-attr]
            transition: Tensor = fit.module.correction.transition  # type: ignore[union-attr, assignment]
            self._noisy_transition = transition.clone()
            fit.module.correction.set_transition(torch.eye(len(transition)).to(transition))  # type: ignore[union-attr, operator]

    def on_validation_start(self, fit: Fit) -> None:
        """Put T back."""
        self._put_back(fit.module)

    def on_train_epoch_end(self, fit: Fit) -> None:
        """Put T back where no validation did."""
        self._put_back(fit.module)

    def _put_back(self, module: LightningModule) -> None:
        if self._noisy_transition is not None:
            module.correction.set_transition(self._noisy_transition)  # type: ignore[union-attr, operator]
            self._noisy_transition = None

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments."""
        return {"from_epoch": self.begins_at, "lr_factor": self.lr_factor}

    def state_dict(self) -> dict[str, Any]:
        """Return the T that is set aside, for a checkpoint written within an epoch."""
        return {"noisy_transition": self._noisy_transition}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._noisy_transition = state["noisy_transition"]
