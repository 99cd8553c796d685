"""Stage two: training afresh with the corrected loss."""

from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng

from noisylightning import internals
from noisylightning.errors import BadValue
from noisylightning.phases.base import Fit, Phase

_STARTS = {"initial": "the initial weights", "fresh": "fresh weights", "keep": "stage one's weights"}


class CorrectionPhase(Phase):
    """Put T-hat into the correction and train anew: weights, optimizer, schedule and the checkpoints' best scores.

    A module may define ``on_transition_estimated(self, transition)`` and do what it likes with T-hat there; it is
    called again when a fit resumes.

    Args:
        reinit: Its first weights: the ``"initial"`` ones of the fit; a ``"fresh"`` draw, by the module's
            ``reset_weights()``; or ``"keep"`` to go on from those that the module has.

    Raises:
        ValueError: If ``reinit`` is none of these.
    """

    name = "correction"
    provides_transition = True

    def __init__(self, reinit: Literal["initial", "fresh", "keep"] = "initial") -> None:
        if reinit not in _STARTS:
            raise BadValue(f"reinit must be one of {', '.join(map(repr, _STARTS))}, got {reinit!r}.")
        self.reinit = reinit

    def setup(self, fit: Fit) -> None:
        """Refuse a module whose weights cannot be drawn anew where that is asked for."""
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
        """Keep the weights that it begins from."""
        if fit.memory.initial is None and self.reinit == "initial":
            fit.memory.initial = internals.snapshot(fit.module)

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
        internals.restart(fit.trainer, module, memory.start, replaces=fit.has_discarded)
        self.take_up(fit)
        memory.initial = memory.chosen = None
        memory.details = {}
        name = type(module if memory.correction is None else memory.correction).__name__
        rank_zero_info(f"Stage two: training from {_STARTS[self.reinit]} with {name} and the estimated T.")

    def take_up(self, fit: Fit) -> None:
        """Tell T-hat to a module that wants to know it."""
        hook = getattr(fit.module, "on_transition_estimated", None)
        if callable(hook):
            assert fit.memory.transition is not None
            hook(fit.memory.transition.to(fit.module.device))

    def goes_on(self) -> bool:
        """Tell whether it keeps weights."""
        return self.reinit == "keep"

    @property
    def config(self) -> dict[str, Any]:
        """Its argument."""
        return {"reinit": self.reinit}
