"""Stage two: training afresh with the corrected loss."""

from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng

from noisylightning import internals
from noisylightning.errors import BadValue
from noisylightning.phases.base import Fit, Phase
from noisylightning.phases.engine import is_latest
from noisylightning.phases.joint import joint_loader, refuse_joint, rehearse_joint, require_told

_STARTS = {"initial": "the initial weights", "fresh": "fresh weights", "keep": "stage one's weights"}


class CorrectionPhase(Phase):
    """Put T-hat into the correction and train anew: weights, optimizer, schedule and the checkpoints' best scores.

    A module may define ``on_transition_estimated(self, transition)`` and do what it likes with T-hat there; it is
    called again when a fit resumes.

    Args:
        reinit: Its first weights: the ``"initial"`` ones of the fit; a ``"fresh"`` draw, by the module's
            ``reset_weights()``; or ``"keep"`` to go on from those that the module has.
        train_on_trusted: Whether to train on the data module's ``joint_dataloader()``: on its trusted samples too, with
            the base loss (Hendrycks et al., NeurIPS 2018).

    Raises:
        ValueError: If ``reinit`` is none of these; from the fit, if there is no way to train on both.
    """

    name = "correction"
    provides_transition = True

    def __init__(self, reinit: Literal["initial", "fresh", "keep"] = "initial", train_on_trusted: bool = False) -> None:
        if reinit not in _STARTS:
            raise BadValue(f"reinit must be one of {', '.join(map(repr, _STARTS))}, got {reinit!r}.")
        self.reinit = reinit
        self.train_on_trusted = train_on_trusted
        self._steps_unseen = False

    def setup(self, fit: Fit) -> None:
        """Refuse a module whose weights cannot be drawn anew, or that knows no trusted samples, where that is asked."""
        if self.train_on_trusted:
            refuse_joint(fit.trainer, fit.module)
        if self.reinit != "fresh":
            return
        if not callable(getattr(fit.module, "reset_weights", None)):
            raise BadValue(
                f"reinit='fresh' needs {type(fit.module).__name__}.reset_weights(), which draws its weights anew."
            )
        with isolate_rng():  # a rehearsal, lest it fail after stage one
            initial = internals.snapshot(fit.module)
            fit.module.reset_weights()  # type: ignore[operator]
            fit.module.load_state_dict(initial)

    def prepare(self, fit: Fit) -> None:
        """Keep the weights that it begins from; fail early where there are no trusted samples."""
        if self.train_on_trusted:
            joint_loader(fit.trainer)
        if fit.memory.initial is None and self.reinit == "initial":
            fit.memory.initial = internals.snapshot(fit.module)

    def rehearse(self, fit: Fit) -> None:
        """Read a first batch of noisy and trusted samples."""
        if self.train_on_trusted:
            rehearse_joint(fit.trainer)

    def needs_whole_epochs(self, fit: Fit) -> bool:
        """Whether it trains on other data than the phase before."""
        return self.train_on_trusted

    def begin(self, fit: Fit) -> None:
        """Put T-hat in and start training again."""
        memory, module = fit.memory, fit.module
        assert memory.start is not None
        assert memory.transition is not None
        if self.reinit == "initial":
            assert memory.initial is not None
            module.load_state_dict(memory.initial)
        elif self.reinit == "fresh":
            assert memory.seed is not None
            internals.reseed(fit.trainer, memory.seed)
            module.reset_weights()  # type: ignore[operator]
            module.load_state_dict(fit.trainer.strategy.broadcast(internals.snapshot(module)))
        if memory.correction is not None:
            memory.correction.set_transition(memory.transition, memory.details)
        self._join(fit)
        internals.restart(fit.trainer, module, memory.start, replaces=fit.has_discarded)
        self._tell(fit)
        memory.initial = memory.chosen = None
        memory.details = {}
        name = type(module if memory.correction is None else memory.correction).__name__
        on_both = ", on noisy and trusted samples" if self.train_on_trusted else ""
        rank_zero_info(f"Stage two: training from {_STARTS[self.reinit]} with {name} and the estimated T{on_both}.")

    def take_up(self, fit: Fit) -> None:
        """Take the trusted samples up again, and tell T-hat to a module that wants to know it."""
        if is_latest(fit.trainer, self):  # else a phase of another callback has data of its own
            self._join(fit)
        self._tell(fit)

    def _join(self, fit: Fit) -> None:
        if self.train_on_trusted:
            internals.train_on(fit.trainer, joint_loader(fit.trainer))
            self._steps_unseen = True

    def on_train_batch_start(self, fit: Fit) -> None:
        """See once that the module tells its correction which samples are trusted."""
        if self._steps_unseen:
            self._steps_unseen = False
            if is_latest(fit.trainer, self):
                require_told(fit.module)

    def _tell(self, fit: Fit) -> None:
        hook = getattr(fit.module, "on_transition_estimated", None)
        if callable(hook):
            assert fit.memory.transition is not None
            hook(fit.memory.transition.to(fit.module.device))

    def goes_on(self) -> bool:
        """Tell whether it keeps weights."""
        return self.reinit == "keep"

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments."""
        return {"reinit": self.reinit, "train_on_trusted": self.train_on_trusted}
