"""The true T, where the data module knows it."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from noisylightning.errors import BadValue
from noisylightning.internals import data_attribute, train_on
from noisylightning.phases.identity import require_same_arguments
from noisylightning.phases.joint import joint_loader, refuse_joint, rehearse_joint, require_told, trusted_in


class KnownTransitionCallback(Callback):
    """Hand the data module's true T to the model's correction before training starts.

    For experiments with synthetic noise, where T is known: what an estimate of T could reach at best.

    Args:
        train_on_trusted: Whether to train on the data module's ``joint_dataloader()``: on its trusted samples too, with
            the base loss, as stage two of gold loss correction does (Hendrycks et al., NeurIPS 2018).

    Raises:
        ValueError: When the fit starts, if the data module does not know T, or has no trusted samples where these are
            asked for; or if a checkpoint to resume from was written with other arguments.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[KnownTransitionCallback()], logger=False, enable_checkpointing=False)
    """

    provides_transition = True  # so that a correction without T is not refused

    def __init__(self, train_on_trusted: bool = False) -> None:
        self.train_on_trusted = train_on_trusted

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take noisy and trusted samples together, before a schedule asks how many steps there are."""
        if stage == "fit" and self.train_on_trusted:
            refuse_joint(trainer, pl_module)
            rehearse_joint(trainer)
            train_on(trainer, joint_loader(trainer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """See once an epoch that the module tells its correction which samples are trusted."""
        if self.train_on_trusted and batch_idx == 0 and trusted_in(batch) is not None:
            require_told(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set T.

        Raises:
            ValueError: If the data module does not know T.
        """
        transition = data_attribute(trainer, "transition")
        if transition is None:
            raise BadValue(
                "KnownTransitionCallback needs a data module that knows T, but its `transition` is None or missing:"
                " give it synthetic noise, or estimate T with EstimateTransitionCallback."
            )
        pl_module.correction.set_transition(transition)  # type: ignore[union-attr, operator]

    def state_dict(self) -> dict[str, Any]:
        """Return the argument, which a resumed fit must agree on."""
        return {"train_on_trusted": self.train_on_trusted}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another argument."""
        if trainer.state.fn == "fit":
            saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
            require_same_arguments(type(self).__name__, saved, self.state_dict())
