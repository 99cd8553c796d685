"""What a phase of a fit is, and what phases leave for each other."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue
from noisylightning.functional.verdict import GainIn
from noisylightning.transition import SparseTransition


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
class Candidate:
    """A T that networks are trained with, to see how good it is.

    Attributes:
        name: Where it comes from.
        transition: T, on the CPU; the identity is no estimate, but what the others must be better than.
        weights: Those of the networks trained with it, one for each part of the data that one of them does not see.
        log_likelihood: Log-likelihood of each sample's label by the network that was trained without it, float64 of
            shape ``(N,)``; None as long as there is none.
        standard_error: Standard error of each entry of T, where it was computed.
        rounds: In how many it was refined.
        details: What the estimator has found beside it.
        named: Whether clean labels have made the rows, so that each has its class's name.
        estimate: T-hat as its estimator gave it, dense; None of the identity.
        foretold: Whether each sample's label was the one that its network held most probable in the first round, bool
            of shape ``(N,)``; None as long as there is none.
    """

    name: str
    transition: Tensor
    weights: list[dict[str, Any]] = field(default_factory=list)
    log_likelihood: Tensor | None = None
    standard_error: Tensor | None = None
    rounds: int = 0
    details: dict[str, Tensor] = field(default_factory=dict)
    named: bool = False
    estimate: Tensor | None = None
    foretold: Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it is the identity."""
        return self.name == "identity"


@dataclass
class Memory:
    """What the phases of one engine leave for each other; all but correction and details travels in checkpoints.

    Attributes:
        seed: What each epoch's random state is made from.
        start: Precision, optimizers and judging callbacks as they were before the first step; None once every phase
            has begun.
        chosen: The weights that the last phase has chosen.
        initial: The weights before the first step, as long as a phase will begin from them.
        transition: T-hat once it is estimated, on the CPU.
        details: What the estimator has found beside it; the next phase takes it, so that no checkpoint needs it.
        standard_error: That of each entry of T-hat, on the CPU; None where the estimator computes none.
        out_of_fold: For each part of the data what a network that was trained without it predicts there: columns by
            name; empty where no phase asked for it.
        fold_weights: The weights of these networks.
        candidates: T-hats of which one is to be chosen.
        unrefined: The T-hat with which most labels were foretold in the first round, as its estimator gave it.
        gain: By how much held-out labels are foretold better with T-hat than without, and the standard error of that;
            None where no network was trained to see it.
        gain_in: What of these labels it is a gain in.
        named: Whether trusted labels have told apart the classes that noisy ones cannot.
        added: Epochs and optimizer steps by which phases have lengthened the fit.
        stage_one_epochs: How many epochs the phase on noisy labels had, once it is over.
        correction: What corrects the module's loss; found when the fit is set up.
    """

    seed: int | None = None
    start: dict[str, Any] | None = None
    chosen: Chosen | None = None
    initial: dict[str, Any] | None = None
    transition: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)
    standard_error: Tensor | None = None
    out_of_fold: list[dict[str, Tensor]] = field(default_factory=list)
    fold_weights: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    unrefined: Candidate | None = None
    gain: tuple[float, float] | None = None
    gain_in: GainIn = "log-likelihood"
    named: bool = False
    added: tuple[int, int] = (0, 0)
    stage_one_epochs: int = 1
    correction: Correction | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        state = {name: value for name, value in vars(self).items() if name != "correction"}
        state["chosen"] = None if self.chosen is None else dict(vars(self.chosen))
        state["candidates"] = [dict(vars(candidate)) for candidate in self.candidates]
        state["unrefined"] = None if self.unrefined is None else dict(vars(self.unrefined))
        return state | {"transition": _parts(self.transition)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up from plain data."""
        vars(self).update(state)
        self.transition = _joined(state["transition"])
        self.chosen = None if state["chosen"] is None else Chosen(**state["chosen"])
        self.candidates = [Candidate(**candidate) for candidate in state["candidates"]]
        self.unrefined = None if state["unrefined"] is None else Candidate(**state["unrefined"])


def suited(correction: Correction, transition: Tensor) -> Tensor:
    """Return a dense T in the layout that a correction takes: sparse where its own T is.

    Args:
        correction: The correction.
        transition: T, ``(C, C)``, dense.
    """
    return transition.to_sparse() if isinstance(correction.T, SparseTransition) else transition


def _parts(transition: Tensor | None) -> Any:
    """Take a sparse T-hat apart: torch warns of one that it loads with ``weights_only``."""
    if transition is None or transition.layout == torch.strided:
        return transition
    return {"indices": transition.indices(), "values": transition.values(), "size": tuple(transition.shape)}


def _joined(saved: Any) -> Tensor | None:
    """Undo :func:`_parts`."""
    if not isinstance(saved, dict):
        return saved
    return torch.sparse_coo_tensor(**saved, check_invariants=True).coalesce()


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
        peers = internals.callbacks(self.trainer)
        begin = [self.added + epoch for peer in peers for epoch in getattr(peer, "beginnings", ())]
        assert self.trainer.max_epochs is not None
        return min(begin, default=-1) if self.trainer.max_epochs == -1 else min([*begin, self.trainer.max_epochs])

    @property
    def added(self) -> int:
        """The epochs by which phases have lengthened the fit; ``begins_at`` does not count them."""
        return sum(getattr(peer, "added_epochs", 0) for peer in internals.callbacks(self.trainer))

    @property
    def has_discarded(self) -> bool:
        """Whether the networks that were trained last are of no use to the user."""
        return self.memory.added[0] > 0

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
        trains: Whether it takes training steps; else all its work is done in :meth:`begin`.
        is_stage: Whether it counts as a stage of the fit, if it trains.
        begins_at: The epoch at which it begins for certain, not counting those by which phases lengthen the fit; None
            where that depends on the phase before.
    """

    name: ClassVar[str]
    provides_transition: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    is_stage: ClassVar[bool] = True
    begins_at: int | None = None

    # The fit is set up

    def setup(self, fit: Fit) -> None:
        """Refuse what cannot work, before any work is done."""

    def prepare(self, fit: Fit) -> None:
        """Keep, if it has not begun, what it will need of the state before the first step."""

    def rehearse(self, fit: Fit) -> None:
        """Try, if it has not begun, in small what would else fail late; leave no trace."""

    def needs_whole_epochs(self, fit: Fit) -> bool:
        """Tell whether it must begin with an epoch; the phase before it then goes on to the epoch's end."""
        return False

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

    def extra_epochs(self, fit: Fit) -> int:
        """Return by how many epochs the fit becomes longer with what has just begun."""
        return 0

    def goes_on(self) -> bool:
        """Tell whether it goes on from trained weights, and not from the fit's first or fresh ones."""
        return False

    def repeats(self, fit: Fit) -> bool:
        """Tell whether it begins once more, now that it is over and has ended."""
        return False

    def may_repeat(self) -> bool:
        """Tell whether it may begin once more later, though no phase waits: the fit's first state is kept till then."""
        return False

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
