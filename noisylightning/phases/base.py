"""What a phase of a fit is, and what phases leave for each other."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue


@dataclass
class Chosen:
    """Weights that a phase leaves for the next.

    Attributes:
        weights: The module's state on the CPU.
        epoch: The epoch they are of.
        origin: In words, which they are.
        accuracy: Their accuracy on noisy validation data, in [0, 1], where it is known.
    """

    weights: dict[str, Any]
    epoch: int
    origin: str
    accuracy: float | None = None


@dataclass
class Memory:
    """What the phases of one engine leave for each other; all but the correction and the details travel in checkpoints.

    Attributes:
        seed: What each epoch's random state is made from.
        start: Precision, optimizers and judging callbacks as they were before the first step; None once every phase
            has begun.
        chosen: The weights that the last phase has chosen.
        transition: T-hat once it is estimated, on the CPU.
        details: What the estimator has found beside it; for the phase after, so that no checkpoint needs it.
        correction: What corrects the module's loss; found when the fit is set up.
    """

    seed: int | None = None
    start: dict[str, Any] | None = None
    chosen: Chosen | None = None
    transition: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)
    correction: Correction | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        chosen = None if self.chosen is None else dict(vars(self.chosen))
        return {"seed": self.seed, "start": self.start, "chosen": chosen, "transition": self.transition}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up from plain data."""
        self.seed, self.start, self.transition = state["seed"], state["start"], state["transition"]
        self.chosen = None if state["chosen"] is None else Chosen(**state["chosen"])


@dataclass(frozen=True)
class Fit:
    """The running fit as a phase sees it.

    Attributes:
        trainer: The trainer.
        module: The module that it trains.
        memory: What the phases leave for each other.
        within_epoch: Whether an epoch is under way, so that a phase that began now would not begin with a whole one.
    """

    trainer: Trainer
    module: LightningModule
    memory: Memory
    within_epoch: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes, by the correction, the module or the data module.

        Raises:
            ValueError: If none of them knows it.
        """
        for source in (self.memory.correction, self.module, self.trainer.datamodule):  # type: ignore[attr-defined]
            found = getattr(source, "num_classes", None)
            if found is not None:
                return int(found)
        raise BadValue(
            "The fit does not know the number of classes: give the correction num_classes=..., or the module or data"
            " module an attribute num_classes."
        )

    @property
    def end(self) -> int:
        """The epoch before which the running phase ends: the earliest certain beginning of another, or the fit's end.

        -1 is no limit.
        """
        begin = [epoch for peer in internals.callbacks(self.trainer) for epoch in getattr(peer, "beginnings", ())]
        assert self.trainer.max_epochs is not None
        return min(begin, default=-1) if self.trainer.max_epochs == -1 else min([*begin, self.trainer.max_epochs])

    def rest(self) -> tuple[int, int]:
        """Return the epochs and optimizer steps that a phase that begins now has before it; -1 is no limit."""
        return internals.rest_of_the_fit(self.trainer, self.end, self.within_epoch)


class Phase:
    """One phase of a fit. The engine runs phases in their order and calls what is below; most of it may be left out.

    A phase begins when the one before it is over, or at the epoch ``begins_at`` if it has one; a first phase without
    one begins with the fit. What a phase has found out and the next ones need goes into ``fit.memory``.

    Attributes:
        name: What it is called.
        provides_transition: Whether it gives the correction a T.
        trains: Whether it takes training steps, and so counts as a stage; else all its work is done in :meth:`begin`.
        begins_at: The epoch at which it begins for certain; None where that depends on the phase before.
    """

    name: ClassVar[str]
    provides_transition: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    begins_at: int | None = None

    # The fit is set up

    def setup(self, fit: Fit) -> None:
        """Refuse what cannot work, before any work is done."""

    def prepare(self, fit: Fit) -> None:
        """Keep, if it has not begun, what it will need of the state before the first step."""

    def rehearse(self, fit: Fit) -> None:
        """Try, if it has not begun, in small what would else fail late; leave no trace."""

    # Its turn

    def begin(self, fit: Fit) -> None:
        """Do what it does first. An interruption in here is mended by doing all of it again."""

    def take_up(self, fit: Fit) -> None:
        """Go on where a fit starts, or resumes, within the phase."""

    def span(self, fit: Fit) -> tuple[int, int]:
        """Return the epochs and optimizer steps that a schedule built when it begins must span; -1 is no limit."""
        return fit.rest()

    def is_over(self, fit: Fit) -> bool:
        """Tell whether it is over; asked before each epoch, and before each batch with ``fit.within_epoch``."""
        return not self.trains

    def end(self, fit: Fit) -> None:
        """Leave what the next phase needs in ``fit.memory``. It may be called again after an interruption."""

    # While it runs

    def on_train_batch_start(self, fit: Fit) -> None:
        """Act before each training batch."""

    def on_validation_start(self, fit: Fit) -> None:
        """Act before each validation."""

    def on_validation_end(self, fit: Fit) -> None:
        """Act after each validation."""

    def on_train_epoch_end(self, fit: Fit) -> None:
        """Act after each epoch, before checkpoints are saved."""

    def on_train_end(self, fit: Fit) -> None:
        """Act where the fit ends within it."""

    def hears_stop(self, fit: Fit) -> bool:
        """Tell whether early stopping's request to stop ends the phase, not the fit."""
        return False

    # Resuming

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments by name, which a resumed fit must agree on, as plain data."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit needs of it, as plain data that loads with ``weights_only``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
