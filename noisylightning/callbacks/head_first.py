"""The head alone for some epochs, then the whole network."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from noisylightning.errors import BadValue
from noisylightning.internals import before_training_steps, ignores_missing_gradients
from noisylightning.models import encoder_modules, encoder_parameters
from noisylightning.module import network_with_head
from noisylightning.phases import began_untrained
from noisylightning.phases.identity import require_same_arguments

# Lightning's BackboneFinetuning adds the encoder to the optimizer when its time comes, which a stage that begins again
# would undo, and under DDP lets it train unsynchronized. Here the optimizer has all parameters from the beginning, and
# passes over those without a gradient.


class HeadFirst(Callback):
    """Train the head alone for some epochs, then the whole network: for a backbone that was trained before.

    A new head's first gradients would spoil what the encoder knows, and wrong labels are learnt by heart by large
    networks, hardly by a head (Kumar et al., 2022, ICLR; arXiv 2603.12997). While the head is trained alone the encoder
    has no gradients, no weight decay, and its dropout and batch norm are as in evaluation. With an ``encoder_lr`` of
    :class:`~noisylightning.NoisyLabelClassifier` it then learns at a lower rate than the head.

    Each network of a fit that begins from untrained weights has these epochs: stage one, stage two (unless it keeps
    stage one's weights), and those that leave out a part of the data. Those that go on from trained weights train the
    whole network. Which epoch it is says all, so that a fit resumes bit for bit.

    The head is the ``head_layer`` of :class:`~noisylightning.NoisyLabelClassifier`. Another module may name its own by
    an attribute ``head_layer``, a name in its ``named_modules()``; by default it is the last ``nn.Linear``.

    Args:
        epochs: Epochs of the head alone; as many as a stage has, or more, train no encoder.

    Raises:
        ValueError: If ``epochs`` is below 1; when the fit starts, if there is no encoder before the head, the
            processes' strategy does not allow parameters without gradients, or a checkpoint to resume from was written
            with other ``epochs``.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[HeadFirst(epochs=3)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise BadValue(f"HeadFirst's epochs must be at least 1, got {epochs}: leave it out to train all at once.")
        self.epochs = epochs
        self._encoder: tuple[list[nn.Parameter], list[nn.Module]] = [], []
        self._frozen: tuple[list[nn.Parameter], list[nn.Module]] | None = None  # what is, during a step
        self._alone: bool | None = None  # whether the head is trained alone, as far as was said
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done."""
        if stage != "fit":
            return
        encoder_parameters(*network_with_head(pl_module))
        if not ignores_missing_gradients(trainer):
            raise BadValue(
                "HeadFirst leaves parameters without gradients, for which DDP would wait: choose"
                " strategy='ddp_find_unused_parameters_true' (--trainer.strategy)."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Come before training steps."""
        network, head = network_with_head(pl_module)
        modules = [module for part in encoder_modules(network, head) for module in part.modules()]
        self._encoder = encoder_parameters(network, head), modules
        self._undo = before_training_steps(pl_module, lambda batch: self._before_step(trainer, batch))

    def _before_step(self, trainer: Trainer, batch: Any) -> Any:
        began = began_untrained(trainer)
        alone = began is not None and trainer.current_epoch < began + self.epochs
        if alone != self._alone:
            self._alone = alone
            what = f"the head alone, up to epoch {began + self.epochs - 1}" if began is not None and alone else "all"
            rank_zero_info(f"Head first: training {what}.")
        if alone:
            self._freeze()
        return batch

    # During a step alone, so that whoever makes an optimizer between steps sees parameters that are trained.

    def _freeze(self) -> None:
        if self._frozen is not None:  # an optimizer may take a step several times
            return
        parameters, modules = self._encoder
        self._frozen = [each for each in parameters if each.requires_grad], [each for each in modules if each.training]
        self._set(False)

    def _thaw(self) -> None:
        if self._frozen is not None:
            self._set(True)
            self._frozen = None

    def _set(self, trains: bool) -> None:
        assert self._frozen is not None
        parameters, modules = self._frozen
        for parameter in parameters:
            parameter.requires_grad_(trains)
        for module in modules:
            module.training = trains

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave the encoder as it was before the step."""
        self._thaw()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._thaw()
        if self._undo is not None:
            self._undo()
            self._undo = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.on_train_end(trainer, pl_module)

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the argument, which a resumed fit must agree on."""
        return {"epochs": self.epochs}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another argument."""
        if trainer.state.fn == "fit":
            saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
            require_same_arguments(type(self).__name__, saved, self.state_dict())
