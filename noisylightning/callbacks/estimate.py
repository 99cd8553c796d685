"""The two-stage training of Patrini et al. (CVPR 2017) as a callback."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from noisylightning import internals
from noisylightning.callbacks._attach import attach, refuse_misfits, require_use_of_transition
from noisylightning.corrections import Correction
from noisylightning.errors import BadType, BadValue
from noisylightning.estimators import AnchorEstimator, TransitionEstimator
from noisylightning.predictions import collect
from noisylightning.run_folder import run_folder
from noisylightning.transition import relative_l1_error
from noisylightning.transition_files import publish_transition

EstimatorFactory = Callable[[int], TransitionEstimator]
"""Makes an estimator from the number of classes: an estimator's class, or a partial of one."""


def _first_two(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Predict on the batches of most projects: ``(inputs, labels, ...)``."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise BadType(
            f"T is estimated from batches (inputs, labels, ...), but a batch is a {type(batch).__name__}: pass predict,"
            " which maps the module and a batch to (logits, noisy labels)."
        )
    return module(batch[0]), batch[1]


class EstimateTransitionCallback(Callback):
    """Train on the noisy labels, estimate T from the network, and train afresh with the corrected loss, in one fit.

    Stage one trains with T = identity, where every correction is its plain base loss. Then T-hat is fitted to the
    network's predictions on the un-augmented training data; the weights, the optimizer, its schedule, the precision's
    state, early stopping and the checkpoints' best scores begin again; and stage two takes the trainer's remaining
    epochs with T-hat in the correction (Patrini et al., CVPR 2017).

    Stage one ends at the first of: ``stage_one_epochs``; ``stage_one_steps`` optimizer steps; ``patience`` validations
    without a better ``monitor``; a request to stop from the trainer's own EarlyStopping. With neither epochs nor steps
    given, each stage is as long as the fit would have been, and the fit is twice as long.

    What T is estimated on: the data module's (or the module's) ``estimation_dataloader()``; the training data set where
    there is none, with a warning, since its augmentation stays on. In the run's folder the callback leaves
    ``transition.npy``, ``.csv`` and ``.png``, and ``stage_one.ckpt``, the weights that T-hat comes from.

    It works with any LightningModule. A :class:`~noisylightning.NoisyLabelClassifier` brings its correction. For
    another project give ``correction`` and ``loss_attribute``, the name under which the module keeps its criterion, a
    callable ``(logits, labels)``, in whose place the correction stands with settings of its own (class weights, for
    example); or let the module define ``on_transition_estimated(self, transition)`` and do what it likes with T-hat
    there (it is called again when a fit resumes in stage two).

    Args:
        stage_one_epochs: Epochs of stage one, below the trainer's ``max_epochs``, stage two's being the rest.
        stage_one_steps: Optimizer steps of stage one, which may end within an epoch.
        patience: Validations without improvement after which stage one ends early.
        estimator: Makes the estimator from the number of classes.
        estimate_from: Weights that T is estimated with: the ``"best"`` of stage one by ``monitor``, or the ``"last"``.
        monitor: Metric on noisy validation data that says which weights are best.
        mode: Whether the best is the ``"max"`` or the ``"min"`` of ``monitor``.
        reinit: Stage two's first weights: the ``"initial"`` ones of stage one; a ``"fresh"`` draw, by the module's
            ``reset_weights()``; or ``"keep"`` to go on from those that T was estimated with.
        correction: The correction for a module that has none of its own.
        loss_attribute: Name under which the module keeps its criterion.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``; by default ``module(batch[0]), batch[1]``.

    Attributes:
        stage: 1 or 2.
        transition: T-hat once it is estimated, on the CPU; None before.
        stage_one_epoch: Epoch of the weights that T-hat comes from.
        stage_one_checkpoint: File of these weights; empty before.

    Raises:
        ValueError: If an argument is out of bounds, here or, against the trainer, when the fit starts.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callback = EstimateTransitionCallback(stage_one_epochs=5)
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        stage_one_epochs: int | None = None,
        stage_one_steps: int | None = None,
        patience: int | None = None,
        estimator: EstimatorFactory = AnchorEstimator,
        estimate_from: Literal["best", "last"] = "best",
        monitor: str = "val_accuracy",
        mode: Literal["max", "min"] = "max",
        reinit: Literal["initial", "fresh", "keep"] = "initial",
        correction: Correction | None = None,
        loss_attribute: str = "correction",
        predict: collect.Predict = _first_two,
    ) -> None:
        for name, value in (
            ("stage_one_epochs", stage_one_epochs),
            ("stage_one_steps", stage_one_steps),
            ("patience", patience),
        ):
            if value is not None and value < 1:
                raise BadValue(f"{name} must be at least 1, got {value}.")
        for name, choice, choices in (
            ("estimate_from", estimate_from, ("best", "last")),
            ("mode", mode, ("max", "min")),
            ("reinit", reinit, ("initial", "fresh", "keep")),
        ):
            if choice not in choices:
                raise BadValue(f"{name} must be one of {', '.join(map(repr, choices))}, got {choice!r}.")
        if isinstance(estimator, TransitionEstimator):
            raise BadType(
                f"estimator must make an estimator from the number of classes, but an {type(estimator).__name__} was"
                " passed: pass the class, or a functools.partial of it."
            )
        if not (correction is None or isinstance(correction, Correction)):
            raise BadType(
                f"correction must be a Correction, for example ForwardCorrection(num_classes=10), got {correction!r}."
            )
        self.stage_one_epochs = stage_one_epochs
        self.stage_one_steps = stage_one_steps
        self.patience = patience
        self.estimator = estimator
        self.estimate_from = estimate_from
        self.monitor = monitor
        self.mode = mode
        self.reinit = reinit
        self.correction = correction
        self.loss_attribute = loss_attribute
        self.predict = predict

        self.stage: Literal[1, 2] = 1
        self.transition: Tensor | None = None
        self.stage_one_epoch = -1
        self.stage_one_checkpoint = ""
        self._seed: int | None = None
        self._first: dict[str, Any] | None = None  # what stage two begins from
        self._best: dict[str, Any] | None = None  # weights, score and epoch of stage one's best validation
        self._validations_since_best = 0
        self._stop_requested = False
        self._stage_two_span: tuple[int, int] | None = None
        self._criterion_called: Callable[[], bool] | None = None  # of a module that got its correction from here
        self._doubled: tuple[int | None, int | None] | None = None  # the length of each stage of a doubled fit

    # Beginning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any work is done, and put the correction in its place."""
        if stage != "fit":
            return
        internals.refuse_unsupported(trainer)
        refuse_misfits(pl_module)
        if self.stage_one_epochs is None and self.stage_one_steps is None and not internals.dev_batches(trainer):
            self._doubled = self._doubled or internals.double_length(trainer)
        self._require_room_for_stage_two(trainer)
        if self.reinit == "fresh":
            if not callable(getattr(pl_module, "reset_weights", None)):
                raise BadValue(
                    f"reinit='fresh' needs {type(pl_module).__name__}.reset_weights(), which draws its weights anew."
                )
            with isolate_rng():  # a rehearsal, lest it fail after stage one
                initial = internals.snapshot(pl_module)
                pl_module.reset_weights()  # type: ignore[operator]
                pl_module.load_state_dict(initial)
        if self.correction is None:
            require_use_of_transition(pl_module, self.loss_attribute)
        else:
            self.correction.initialize(self._num_classes(trainer, pl_module))
            self._criterion_called = attach(self.correction, pl_module, self.loss_attribute)
        internals.listen_for_early_stopping(trainer, self._on_early_stopping)
        internals.plan_schedules(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up a fit where a checkpoint left it; its schedule is built next, so it must know the stage now."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            raise BadValue(
                "The checkpoint was written without EstimateTransitionCallback, so it does not say how far the two"
                " stages are: load its weights into the model and start a new fit."
            )
        for name, saved in state["config"].items():
            if saved != self._config[name]:
                raise BadValue(
                    f"The checkpoint was written with EstimateTransitionCallback({name}={saved!r}), but this one has"
                    f" {name}={self._config[name]!r}: resume with the same arguments, or start a new fit."
                )
        self.stage = state["stage"]
        self.transition = state["transition"]
        self.stage_one_epoch = state["stage_one_epoch"]
        self.stage_one_checkpoint = state["stage_one_checkpoint"]
        self._seed = state["seed"]
        self._first = state["first"]
        self._best = state["best"]
        self._validations_since_best = state["validations_since_best"]
        self._stop_requested = state["stop_requested"]
        self._stage_two_span = state["stage_two_span"]
        if state["correction"] is not None:
            assert self.correction is not None
            self.correction.load_state_dict(state["correction"])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed fit needs, as plain data that loads with ``weights_only``."""
        return {
            "config": self._config,
            "stage": self.stage,
            "transition": self.transition,
            "stage_one_epoch": self.stage_one_epoch,
            "stage_one_checkpoint": self.stage_one_checkpoint,
            "seed": self._seed,
            "first": self._first,
            "best": self._best,
            "validations_since_best": self._validations_since_best,
            "stop_requested": self._stop_requested,
            "stage_two_span": self._stage_two_span,
            "correction": None if self.correction is None else self.correction.state_dict(),
        }

    @property
    def _config(self) -> dict[str, Any]:
        names = ("stage_one_epochs", "stage_one_steps", "patience", "estimate_from", "monitor", "mode", "reinit")
        correction = None if self.correction is None else type(self.correction).__name__
        return {name: getattr(self, name) for name in names} | {"correction": correction}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what stage two will begin from: the weights are on every process, and nothing is trained yet."""
        if self._seed is None:
            self._seed = trainer.strategy.broadcast(torch.initial_seed())
        if self.stage == 1 and self._first is None:
            self._first = {"weights": internals.snapshot(pl_module), **internals.first_state(trainer)}
        elif self.stage == 2:
            self._tell_module(pl_module)

    # Stage one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that stage one begins; or end it, where a fit resumes on its last step."""
        if self.stage == 2:
            return
        if self.estimate_from == "best" and not trainer.enable_validation and not internals.dev_batches(trainer):
            raise BadValue(
                "EstimateTransitionCallback(estimate_from='best') chooses weights by noisy validation data, but this"
                " fit has none: pass a validation loader, or estimate_from='last'."
            )
        epochs, steps = self._end_of_stage_one(trainer)
        if steps is not None and not internals.dev_batches(trainer) and trainer.estimated_stepping_batches <= steps:
            raise BadValue(
                f"stage_one_steps = {steps} must be below the {trainer.estimated_stepping_batches} optimizer steps of"
                " the whole fit: stage two takes the steps that stage one leaves."
            )
        if self._stage_one_is_over(trainer):
            self._begin_stage_two(trainer, pl_module)
        else:
            self._rehearse(trainer, pl_module)
            length = f"up to epoch {epochs - 1}" if epochs is not None else f"{steps} steps"
            rank_zero_info(f"Stage one: training on the noisy labels with T = identity, {length}.")

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the first batch through the estimation pass, lest it fail after stage one."""
        collect.warn_of_randomness(trainer, pl_module)
        loader = collect.estimation_loader(trainer, pl_module, rehearsal=True)
        collect.feed(trainer, pl_module, loader, self.estimator(self._num_classes(trainer, pl_module)), self.predict)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to stage two where stage one is over; Lightning has saved, logged and scheduled all of it by now."""
        if self.stage == 1 and self._stage_one_is_over(trainer):
            self._begin_stage_two(trainer, pl_module)
        assert self._seed is not None
        internals.reseed(trainer, self._seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go to stage two within an epoch, where stage one is counted in steps."""
        if self.stage == 1:
            steps = self._end_of_stage_one(trainer)[1]
            if steps is not None and trainer.global_step >= steps:
                self._begin_stage_two(trainer, pl_module, within_epoch=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights that noisy validation data likes best."""
        if self.stage == 2 or trainer.sanity_checking or not (self.estimate_from == "best" or self.patience):
            return
        if self.monitor not in trainer.callback_metrics:
            raise BadValue(
                f"EstimateTransitionCallback(monitor={self.monitor!r}) chooses stage one's best weights, but validation"
                f" logged only {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}: name one of these."
            )
        # One score for all: a metric that is not reduced differs between processes.
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        better = self._best is None or (
            score > self._best["score"] if self.mode == "max" else score < self._best["score"]
        )
        if better and not math.isnan(score):
            weights = internals.judged_weights(trainer, pl_module) if self.estimate_from == "best" else None
            self._best = {"score": score, "epoch": trainer.current_epoch, "weights": weights}
            self._validations_since_best = 0
        else:
            self._validations_since_best += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the module trains without the criterion that was to be corrected."""
        self._require_called_criterion(pl_module)

    def _require_called_criterion(self, module: LightningModule) -> None:
        if self._criterion_called is not None and not self._criterion_called():
            raise BadValue(
                f"{type(module).__name__}.training_step does not call its {self.loss_attribute!r}, so its loss would"
                " not be corrected: loss_attribute must name the criterion that it calls as (logits, labels)."
            )

    def _on_early_stopping(self, trainer: Trainer) -> None:
        if self.stage == 1:
            trainer.should_stop = False
            self._stop_requested = True

    def _stage_one_is_over(self, trainer: Trainer) -> bool:
        epochs, steps = self._end_of_stage_one(trainer)
        return (
            self._stop_requested
            or (epochs is not None and trainer.current_epoch >= epochs)
            or (steps is not None and trainer.global_step >= steps)
            or (self.patience is not None and self._validations_since_best >= self.patience)
        )

    def _end_of_stage_one(self, trainer: Trainer) -> tuple[int | None, int | None]:
        """Return epochs and steps of stage one; a fast_dev_run of several batches is cut in two."""
        if internals.dev_batches(trainer):
            return None, max(1, internals.dev_batches(trainer) // 2)
        return self._doubled or (self.stage_one_epochs, self.stage_one_steps)

    def _require_room_for_stage_two(self, trainer: Trainer) -> None:
        if internals.dev_batches(trainer):
            if internals.dev_batches(trainer) == 1:
                rank_zero_warn("fast_dev_run=1 has one batch, which runs stage one alone; fast_dev_run=2 runs both.")
            return
        for name, own, whole, limit in (
            ("stage_one_epochs", self.stage_one_epochs, "max_epochs", trainer.max_epochs),
            ("stage_one_steps", self.stage_one_steps, "max_steps", trainer.max_steps),
        ):
            if own is not None and limit is not None and limit != -1 and own >= limit:
                raise BadValue(
                    f"{name} = {own} must be below the trainer's {whole} = {limit}: stage two takes what stage one"
                    " leaves."
                )

    def schedule_span(self, trainer: Trainer) -> tuple[int, int]:
        """Return the epochs and steps that a schedule built now has to span; -1 is no limit."""
        if self._stage_two_span is not None:
            return self._stage_two_span
        epochs, steps = self._end_of_stage_one(trainer)
        assert trainer.max_epochs is not None
        return epochs or trainer.max_epochs, steps or trainer.max_steps

    # Stage two

    def _begin_stage_two(self, trainer: Trainer, pl_module: LightningModule, within_epoch: bool = False) -> None:
        assert self._first is not None
        weights, origin = self._weights_to_estimate_with(trainer, pl_module)
        pl_module.load_state_dict(weights)
        internals.share_buffers(trainer, pl_module)
        loader = collect.estimation_loader(trainer, pl_module)
        estimator = self.estimator(self._num_classes(trainer, pl_module))
        self.transition = collect.estimate(trainer, pl_module, loader, estimator, self.predict)
        self._publish(trainer, pl_module, f"{type(estimator).__name__}, {origin}, {len(loader.dataset):,} examples")  # type: ignore[arg-type]

        if self.reinit == "initial":
            pl_module.load_state_dict(self._first["weights"])
        elif self.reinit == "fresh":
            assert self._seed is not None
            internals.reseed(trainer, self._seed)
            pl_module.reset_weights()  # type: ignore[operator]
            pl_module.load_state_dict(trainer.strategy.broadcast(internals.snapshot(pl_module)))
        correction = self._correction_of(pl_module)
        if correction is not None:
            correction.set_transition(self.transition)
        self._stage_two_span = internals.rest_of_the_fit(trainer, within_epoch)
        internals.restart(trainer, pl_module, self._first)
        self._tell_module(pl_module)
        self.stage = 2
        self._first = self._best = None
        name = type(correction).__name__ if correction is not None else type(pl_module).__name__
        start = {"initial": "the initial weights", "fresh": "fresh weights", "keep": "stage one's weights"}[self.reinit]
        rank_zero_info(f"Stage two: training from {start} with {name} and the estimated T.")

    def _weights_to_estimate_with(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, Any], str]:
        if self.estimate_from == "best" and not internals.dev_batches(trainer):
            if self._best is None:
                raise BadValue(
                    f"EstimateTransitionCallback(estimate_from='best') has met no {self.monitor!r} in stage one:"
                    " validate at least once before its end, or pass estimate_from='last'."
                )
            self.stage_one_epoch = self._best["epoch"]
            return self._best["weights"], f"epoch {self.stage_one_epoch} with {self.monitor} {self._best['score']:.4f}"
        self.stage_one_epoch = trainer.current_epoch - 1
        return internals.judged_weights(trainer, module), f"weights after {trainer.global_step} steps"

    def _publish(self, trainer: Trainer, module: LightningModule, source: str) -> None:
        assert self.transition is not None
        true = internals.data_attribute(trainer, "transition")
        error = "" if true is None else f"; relative L1 error {relative_l1_error(self.transition, true.cpu()):.4f}"
        saved = ""
        if not internals.dev_batches(trainer):
            folder = run_folder(trainer)
            self.stage_one_checkpoint = f"{folder}/stage_one.ckpt"
            trainer.save_checkpoint(self.stage_one_checkpoint, weights_only=True)
            names = internals.data_attribute(trainer, "class_names")
            if trainer.is_global_zero:
                publish_transition(self.transition, true, folder, trainer.loggers, trainer.global_step, names)
            saved = f"; saved in {folder}"
        rank_zero_info(f"T estimated ({source}){error}{saved}.")

    # The module

    def _correction_of(self, module: LightningModule) -> Correction | None:
        own = getattr(module, self.loss_attribute, None)
        return self.correction or (own if isinstance(own, Correction) else None)

    def _tell_module(self, module: LightningModule) -> None:
        hook = getattr(module, "on_transition_estimated", None)
        if callable(hook):
            assert self.transition is not None
            hook(self.transition.to(module.device))

    def _num_classes(self, trainer: Trainer, module: LightningModule) -> int:
        for source in (self._correction_of(module), module, trainer.datamodule):  # type: ignore[attr-defined]
            found = getattr(source, "num_classes", None)
            if found is not None:
                return int(found)
        raise BadValue(
            "EstimateTransitionCallback does not know the number of classes: give the correction num_classes=..., or"
            " the module or data module an attribute num_classes."
        )

    # Ending

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the fit ended before T was estimated."""
        if self.stage == 1 and not internals.dev_batches(trainer):
            rank_zero_warn("The fit ended in stage one: T was not estimated, and no corrected loss was used.")
