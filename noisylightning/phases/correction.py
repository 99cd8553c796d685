"""Stage two: training afresh with the corrected loss."""

from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng

from noisylightning import internals
from noisylightning.errors import BadValue
from noisylightning.estimators.within_fit import Predict
from noisylightning.phases.base import Fit, Phase
from noisylightning.phases.engine import is_latest
from noisylightning.phases.estimation import predict_first_two
from noisylightning.phases.joint import joint_loader, refuse_joint, rehearse_joint, require_told
from noisylightning.phases.lost import can_be_lost, can_draw_head, draw_head, find_lost

_MOST_DRAWS = 3  # of the head: from one of three a class may be lost again
_STARTS = {"initial": "the initial weights", "fresh": "fresh weights", "keep": "stage one's weights"}


class CorrectionPhase(Phase):
    """Put T-hat into the correction and train anew: weights, optimizer, schedule and the checkpoints' best scores.

    From some first weights training takes two classes that are labelled alike for one. Where T-hat has such classes,
    all samples are predicted after a fifth of the stage, and if one of them is lost the stage begins again, with its
    head drawn anew, at most three times; the fit becomes longer by the epochs that were in vain.

    A module may define ``on_transition_estimated(self, transition)`` and do what it likes with T-hat there; it is
    called again when a fit resumes.

    Args:
        reinit: Its first weights: the ``"initial"`` ones of the fit; a ``"fresh"`` draw, by the module's
            ``reset_weights()``; or ``"keep"`` to go on from those that the module has.
        train_on_trusted: Whether to train on the data module's ``joint_dataloader()``: on its trusted samples too, with
            the base loss (Hendrycks et al., NeurIPS 2018).
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``; by default ``module(batch[0]), batch[1]``.

    Raises:
        ValueError: If ``reinit`` is none of these; from the fit, if there is no way to train on both.
    """

    name = "correction"
    provides_transition = True

    def __init__(
        self,
        reinit: Literal["initial", "fresh", "keep"] = "initial",
        train_on_trusted: bool = False,
        predict: Predict = predict_first_two,
    ) -> None:
        if reinit not in _STARTS:
            raise BadValue(f"reinit must be one of {', '.join(map(repr, _STARTS))}, got {reinit!r}.")
        self.reinit = reinit
        self.train_on_trusted = train_on_trusted
        self.predict = predict
        self._watched: list[int] = []  # classes that may be lost
        self._lost: list[int] = []  # for which it is to begin again
        self._draws = 0  # of the head
        self._began = self._look_at = 0  # epochs
        self._in_vain = 0  # epochs
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
        again = bool(self._lost)
        assert memory.start is not None
        assert memory.transition is not None
        if self.reinit == "initial":
            assert memory.initial is not None
            module.load_state_dict(memory.initial)
        elif self.reinit == "fresh":
            assert memory.seed is not None
            internals.set_random_state(fit.trainer, memory.seed)
            module.reset_weights()  # type: ignore[operator]
            module.load_state_dict(fit.trainer.strategy.broadcast(internals.snapshot(module)))
        if again:
            draw_head(fit)
        if memory.correction is not None:
            memory.correction.set_transition(memory.transition, memory.details)
        self._join(fit)
        internals.restart(fit.trainer, module, memory.start, replaces=again or fit.has_discarded)
        self._tell(fit)
        self._watch(fit, again)
        memory.chosen = None
        memory.details = {}
        if again:
            return
        name = type(module if memory.correction is None else memory.correction).__name__
        on_both = ", on noisy and trusted samples" if self.train_on_trusted else ""
        rank_zero_info(f"Stage two: training from {_STARTS[self.reinit]} with {name} and the estimated T{on_both}.")

    def _watch(self, fit: Fit, again: bool) -> None:
        """Decide which classes may be lost, and when to look."""
        if not again:
            self._watched = self._losable(fit)
        epoch = fit.trainer.current_epoch
        self._in_vain = epoch - self._began if again else 0
        self._draws += again
        epochs, _ = fit.rest()
        self._began, self._look_at, self._lost = epoch, epoch + max(1, (epochs + self._in_vain) // 5), []
        if not self._watched:
            fit.memory.initial = None

    def _losable(self, fit: Fit) -> list[int]:
        memory, (epochs, _) = fit.memory, fit.rest()
        whole = not (fit.within_epoch or internals.dev_batches(fit.trainer)) and epochs > 1
        assert memory.transition is not None
        if not whole or self.reinit == "keep" or memory.correction is None or memory.details:
            return []
        return can_be_lost(memory.transition) if can_draw_head(fit.module) else []

    def is_over(self, fit: Fit) -> bool:
        """Tell whether it is to begin again."""
        return self.repeats(fit)

    def repeats(self, fit: Fit) -> bool:
        """Tell whether it is to begin again; look for classes that were lost where it is time to."""
        if self._watched and not self._lost and not fit.within_epoch and fit.trainer.current_epoch >= self._look_at:
            self._look(fit)
        return bool(self._lost)

    def _look(self, fit: Fit) -> None:
        lost = find_lost(fit, self.predict)
        if lost and self._draws < _MOST_DRAWS:
            rank_zero_info(
                f"Stage two has lost {_told(lost)}, labelled like another class: it begins again, with its head drawn"
                " anew."
            )
            self._lost = lost
            return
        if lost:
            rank_zero_warn(
                f"Stage two has lost {_told(lost)} {self._draws + 1} times: its samples are taken for those of a class"
                " that is labelled alike. Doubt T-hat, or train with another learning rate or network."
            )
        self._watched, fit.memory.initial = [], None

    def may_repeat(self) -> bool:
        """Tell whether classes may be lost."""
        return bool(self._watched)

    def extra_epochs(self, fit: Fit) -> int:
        """Return the epochs that were in vain."""
        return self._in_vain

    def span(self, fit: Fit) -> tuple[int, int]:
        """Return what a stage has, also where it begins again."""
        epochs, steps = fit.rest()
        in_vain = fit.trainer.current_epoch - self._began if self._lost else 0
        return (
            epochs if epochs == -1 else epochs + in_vain,
            steps if steps == -1 else steps + in_vain * internals.steps_an_epoch(fit.trainer),
        )

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

    def state_dict(self) -> dict[str, Any]:
        """Return what it watches."""
        return {
            "watched": self._watched,
            "lost": self._lost,
            "draws": self._draws,
            "began": self._began,
            "look_at": self._look_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        self._watched, self._lost, self._draws = state["watched"], state["lost"], state["draws"]
        self._began, self._look_at = state["began"], state["look_at"]

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments."""
        return {"reinit": self.reinit, "train_on_trusted": self.train_on_trusted}


def _told(classes: list[int]) -> str:
    return f"class{'es' * (len(classes) > 1)} {', '.join(map(str, classes))}"
