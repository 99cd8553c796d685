"""The true T, where the data module knows it."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from noisylightning.errors import BadValue
from noisylightning.internals import data_attribute


class KnownTransitionCallback(Callback):
    """Hand the data module's true T to the model's correction before training starts.

    For experiments with synthetic noise, where T is known: what an estimate of T could reach at best.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[KnownTransitionCallback()], logger=False, enable_checkpointing=False)
    """

    provides_transition = True  # so that a correction without T is not refused

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
