"""The small engine: a Lightning callback that runs phases one after the other within a fit."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue
from noisylightning.phases.base import Fit, Memory, Phase
from noisylightning.phases.identity import require_same_arguments


class RunPhases(Callback):
    """Run phases one after the other within a fit, so that it resumes in each of them bit for bit.

    A phase begins before the first batch of an epoch, when Lightning has saved, logged and scheduled all that came
    before; one that is counted in steps may begin within an epoch. Optimizers and schedules are built anew where a
    phase restarts training, as if the phase were a fit of its own. Several of these callbacks in one trainer, each with
    phases of its own, go together: a phase lasts to the earliest certain beginning of another, or to the fit's end.

    Args:
        phases: The phases in their order.

    Attributes:
        phases: The phases in their order.

    Raises:
        ValueError: From the fit, if what its phases need is missing, or a checkpoint was written with other arguments.

    Example:
        >>> from noisylightning.phases import CorrectionPhase, EstimationPhase, NoisyLabelsPhase
        >>> run = RunPhases([NoisyLabelsPhase(stage_one_epochs=5), EstimationPhase(), CorrectionPhase()])
        >>> run.phase.name, run.stage
        ('noisy labels', 1)
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = list(phases)
        self._memory = Memory()
        self._index = 0 if self.phases[0].begins_at is None else -1  # of the running phase
        self._epoch = 0  # at which it began
        self._held: list[Optimizer] = []  # by a module that does not make new ones
        self._span: tuple[int, int] | None = None  # of schedules in it; None as long as nothing was built anew

    @property
    def reseeds(self) -> bool:
        """Whether it gives each epoch its random state: from the beginning of its first phase on."""
        return self.phase is not None

    @property
    def phase(self) -> Phase | None:
        """The running phase; None before the first."""
        return self.phases[self._index] if self._index >= 0 else None

    @property
    def stage(self) -> int:
        """How many stages have begun."""
        return sum(phase.trains and phase.is_stage for phase in self.phases[: self._index + 1])

    @property
    def added_epochs(self) -> int:
        """The epochs by which its phases have lengthened the fit."""
        return self._memory.added[0]

    @property
    def provides_transition(self) -> bool:
        """Whether one of the phases gives the correction a T."""
        return any(phase.provides_transition for phase in self.phases)

    @property
    def awaits_transition(self) -> bool:
        """Whether a phase that gives the correction a T has yet to begin."""
        return any(phase.provides_transition for phase in self._waiting)

    @property
    def beginnings(self) -> list[int]:
        """The epochs at which phases that have not begun will begin for certain."""
        return [phase.begins_at for phase in self._waiting if phase.begins_at is not None]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that a resumed fit must agree on, as plain data."""
        names = {"phases": [phase.name for phase in self.phases]}
        return {name: value for phase in self.phases for name, value in phase.config.items()} | names

    @property
    def _waiting(self) -> list[Phase]:
        return self.phases[self._index + 1 :]

    # Setting up and resuming

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done."""
        if stage != "fit":
            return
        internals.refuse_unsupported(trainer)
        own = getattr(pl_module, "correction", None)
        if self._memory.correction is None and isinstance(own, Correction) and own.uses_transition:
            self._memory.correction = own
        for phase in self.phases:
            phase.setup(self._fit(trainer, pl_module))
        self._held = internals.held_optimizers(pl_module)
        internals.listen_for_early_stopping(trainer, _hear_stop)
        internals.plan_schedules(trainer, _span_of_schedules)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a fit where a checkpoint left it; its schedule is built next, so it must know the phase now."""
        if trainer.state.fn != "fit":
            return
        state, name = checkpoint.get("callbacks", {}).get(self.state_key), type(self).__name__
        if state is None:
            if self.phase is None:
                return  # nothing of it had begun
            raise BadValue(
                f"The checkpoint was written without {name}, so it does not say how far its phases are: load its"
                " weights into the model and start a new fit."
            )
        require_same_arguments(name, state["config"], self.config)
        self._index, self._epoch, self._span = state["phase"], state["epoch"], state["span"]
        self._memory.load_state_dict(state["memory"])
        internals.lengthen(trainer, *self._memory.added)
        for phase, saved in zip(self.phases, state["states"], strict=True):
            phase.load_state_dict(saved)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed fit needs, as plain data that loads with ``weights_only``."""
        return {
            "config": self.config,
            "phase": self._index,
            "epoch": self._epoch,
            "span": self._span,
            "memory": self._memory.state_dict(),
            "states": [phase.state_dict() for phase in self.phases],
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what later phases begin from: the weights are on every process, and nothing is trained yet."""
        internals.refuse_test_monitors(trainer)
        memory = self._memory
        if memory.seed is None:
            memory.seed = trainer.strategy.broadcast(torch.initial_seed())
        internals.require_restorable(trainer, pl_module, self._held)
        if memory.start is None and self._waiting:
            memory.start = internals.first_state(trainer)
        transition = None if memory.correction is None else memory.correction.T
        if transition is not None and self._index <= 0 and self.provides_transition:
            transition.await_estimate()  # a T that learns is the identity until there is an estimate
        for phase in self._waiting:
            phase.prepare(self._fit(trainer, pl_module))

    # Going on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the running phase up; or end it, where a fit resumes on its last step."""
        internals.begin_whole_epoch(trainer)
        fit = self._fit(trainer, pl_module)
        if self._advance(fit):
            return
        for phase in self._waiting:
            phase.rehearse(fit)
        if self.phase is not None:
            self.phase.take_up(fit)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the next phase where its time has come."""
        self._advance(self._fit(trainer, pl_module))
        # Once, after every beginning of a phase, which may draw from the random state.
        if self is self._last_running(trainer):
            assert self._memory.seed is not None
            internals.reseed(trainer, self._memory.seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go to the next phase within an epoch, where the running one is counted in steps."""
        advanced = False
        if self._waiting and self.phase is not None:
            advanced = self._advance(self._fit(trainer, pl_module, within_epoch=True))
        if (batch_idx == 0 or advanced) and self is self._last_running(trainer):
            # Once an epoch, and the bar shows it to the epoch's end: logging at each step costs a small network much.
            stage = sum(engine.stage for engine in _engines(trainer))
            pl_module.log("stage", float(stage), prog_bar=True, logger=False, on_step=True, on_epoch=False)
        if self.phase is not None:
            self.phase.on_train_batch_start(self._fit(trainer, pl_module))

    def _advance(self, fit: Fit) -> bool:
        """Begin every phase whose time has come, and tell whether there was one."""
        advanced = False
        while (to := self._due(fit)) is not None:
            before = self._index, self._epoch, self._span
            # An interruption leaves the phase before it running, which a resumed fit ends again.
            try:
                self._index, self._epoch = to, fit.trainer.current_epoch
                phase = self.phases[to]
                self._span = phase.span(fit)
                phase.begin(fit)
                self._lengthen(fit, phase.extra_epochs(fit))
            except BaseException:
                self._index, self._epoch, self._span = before
                raise
            advanced = True
        if not self._waiting and not (self.phase is not None and self.phase.may_repeat()):
            self._memory.start = None
        return advanced

    def _due(self, fit: Fit) -> int | None:
        """End the running phase if its time is over, and return which one is to begin now."""
        running = self.phase
        planned = self._waiting[0].begins_at if self._waiting else None
        if planned is not None and fit.trainer.current_epoch - fit.added >= planned:
            if running is not None:
                running.end(fit)
            return self._index + 1
        if running is None or not (self._waiting or running.repeats(fit)) or not running.is_over(fit):
            return None
        if fit.within_epoch and any(phase.needs_whole_epochs(fit) for phase in self._waiting):
            return None
        running.end(fit)
        if running.repeats(fit):
            return self._index
        return self._index + 1 if self._waiting else None

    def _lengthen(self, fit: Fit, epochs: int) -> None:
        if epochs:
            steps = epochs * internals.steps_an_epoch(fit.trainer)
            internals.lengthen(fit.trainer, epochs, steps)
            self._memory.added = self._memory.added[0] + epochs, self._memory.added[1] + steps

    # What the running phase does

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the running phase act."""
        if self.phase is not None:
            self.phase.on_validation_start(self._fit(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the running phase act."""
        if self.phase is not None:
            self.phase.on_validation_end(self._fit(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the running phase act."""
        if self.phase is not None:
            self.phase.on_train_epoch_end(self._fit(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the running phase act."""
        if self.phase is not None:
            self.phase.on_train_end(self._fit(trainer, pl_module))

    @staticmethod
    def _last_running(trainer: Trainer) -> "RunPhases | None":
        """Return the one engine that does what is to be done once for all."""
        return next((engine for engine in reversed(_engines(trainer)) if engine.phase is not None), None)

    def _fit(self, trainer: Trainer, module: LightningModule, within_epoch: bool = False) -> Fit:
        return Fit(trainer, module, self._memory, within_epoch)


# All engines of a trainer


def _engines(trainer: Trainer) -> list[RunPhases]:
    return [callback for callback in internals.callbacks(trainer) if isinstance(callback, RunPhases)]


def _latest(trainer: Trainer) -> RunPhases | None:
    """Return the engine whose phase began last; None in plain training, until the first phase begins."""
    running = [engine for engine in _engines(trainer) if engine.phase is not None]
    return max(running, key=lambda engine: engine._epoch, default=None)


def is_latest(trainer: Trainer, phase: Phase) -> bool:
    """Tell whether a phase is, of those that run in a trainer's callbacks, the one that began last.

    Args:
        trainer: The trainer, within a fit.
        phase: A phase that runs.
    """
    last = _latest(trainer)
    return last is not None and last.phase is phase


def began_untrained(trainer: Trainer) -> int | None:
    """Return the epoch at which the network that is trained now began; None where it went on from trained weights.

    Args:
        trainer: The trainer, within a fit, with phases or without.
    """
    last = _latest(trainer)
    if last is None:
        return 0
    assert last.phase is not None
    return None if last.phase.goes_on() else last._epoch


def _span_of_schedules(trainer: Trainer) -> tuple[int, int]:
    """Return the epochs and steps that a schedule built now has to span: those of the phase that began last."""
    last = _latest(trainer)
    if last is None:
        return Fit(trainer, trainer.lightning_module, Memory()).end, trainer.max_steps
    assert last.phase is not None
    return last._span or last.phase.span(last._fit(trainer, trainer.lightning_module))


def _hear_stop(trainer: Trainer) -> None:
    """Let early stopping's request to stop end a phase that hears it, and not the fit."""
    for engine in _engines(trainer):
        if engine.phase is not None and engine.phase.hears_stop(engine._fit(trainer, trainer.lightning_module)):
            trainer.should_stop = False
