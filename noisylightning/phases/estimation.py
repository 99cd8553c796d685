"""Estimating T within a fit, from a network that was trained on the noisy labels."""

from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.errors import BadType, UserError
from noisylightning.estimators import (
    AnchorEstimator,
    ConsensusEstimator,
    EstimatorFactory,
    TransitionEstimator,
    within_fit,
)
from noisylightning.functional.consensus import most_central
from noisylightning.functional.names import exchangeable
from noisylightning.functional.verdict import doubt
from noisylightning.phases.base import Candidate, Fit, Phase
from noisylightning.phases.folds import Plan, whole
from noisylightning.phases.identity import identify
from noisylightning.phases.naming import ASKED, ask_trusted, name_classes
from noisylightning.phases.report import report
from noisylightning.run_folder import run_folder
from noisylightning.transition import SparseTransition


def predict_first_two(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Predict on the batches of most projects: ``(inputs, labels, ...)``."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise BadType(
            f"T is estimated from batches (inputs, labels, ...), but a batch is a {type(batch).__name__}: pass predict,"
            " which maps the module and a batch to (logits, noisy labels)."
        )
    return module(batch[0]), batch[1]


_AT_RANDOM = 0.02  # of the labels


class EstimationPhase(Phase):
    """Estimate T from the weights that the phase before has chosen, and leave T-hat for the next.

    T is estimated on ``estimation_dataloader()`` of the data module or the module; on the training data set where there
    is none. In the run's folder it leaves ``transition.npy``, ``.csv`` and ``.png``, with replicates
    ``transition_standard_error.npy``, and ``stage_one.ckpt``, the weights that T-hat comes from, which the module has
    from here on. It warns of classes that noisy labels cannot tell apart.

    Args:
        estimator: Makes the estimator from the number of classes.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``; by default ``module(batch[0]), batch[1]``.
        feature_layer: Name in ``module.named_modules()`` of the layer whose input are the features, for an estimator
            that needs them; by default the last ``nn.Linear``.
        plan: Whether parts of the data are predicted by networks trained without them, which is then what estimators
            get that need no features, and T-hat is refined, so that what is found here are candidates.

    Attributes:
        epoch: Epoch of the weights that T-hat comes from; -1 before.
        checkpoint: File of these weights; empty before.

    Raises:
        TypeError: If ``estimator`` is an estimator itself.
    """

    name = "estimation"
    trains = False

    def __init__(
        self,
        estimator: EstimatorFactory = AnchorEstimator,
        predict: within_fit.Predict = predict_first_two,
        feature_layer: str | None = None,
        plan: Plan | None = None,
    ) -> None:
        if isinstance(estimator, TransitionEstimator):
            raise BadType(
                f"estimator must make an estimator from the number of classes, but an {type(estimator).__name__} was"
                " passed: pass the class, or a functools.partial of it."
            )
        self.estimator = estimator
        self.predict = predict
        self.feature_layer = feature_layer
        self.plan = Plan(rounds=0) if plan is None else plan
        self.epoch = -1
        self.checkpoint = ""
        # Now: a callable may count what it has seen.
        given = {"estimator": identify(estimator), "predict": identify(predict)}
        self._config = given | {"feature_layer": feature_layer}

    def setup(self, fit: Fit) -> None:
        """Ask the estimator how often T-hat is to be refined."""
        self.plan.asked = self.estimator(fit.num_classes).rounds

    def rehearse(self, fit: Fit) -> None:
        """Put the first batch through the estimation pass; one estimator that takes it is enough."""
        failures = []
        for estimator in self._estimators(fit):
            if "held_out" in estimator.needs and self.plan.num_folds:
                continue  # nothing is held out yet
            try:
                within_fit.rehearse(fit.trainer, fit.module, estimator, self.predict, self.feature_layer)
                return
            except UserError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _estimators(self, fit: Fit) -> list[TransitionEstimator]:
        made = self.estimator(fit.num_classes)
        return made.starts if isinstance(made, ConsensusEstimator) else [made]

    def begin(self, fit: Fit) -> None:
        """Estimate T."""
        chosen, memory = fit.memory.chosen, fit.memory
        assert chosen is not None
        self.epoch = chosen.epoch
        fit.module.load_state_dict(chosen.weights)
        internals.share_buffers(fit.trainer, fit.module)
        if not internals.dev_batches(fit.trainer):
            self.checkpoint = f"{run_folder(fit.trainer)}/stage_one.ckpt"
            fit.trainer.save_checkpoint(self.checkpoint, weights_only=True)
        found = self._ask(fit)
        if self.plan.refines(fit):
            identity = Candidate("identity", torch.eye(fit.num_classes))
            memory.candidates = [identity, *self._usable(fit, [candidate for candidate, _ in found])]
            return
        taken, counts = found[most_central([candidate.transition for candidate, _ in found])]
        taken, memory.named = self._named(fit, taken)
        memory.transition, memory.standard_error, memory.details = taken.transition, taken.standard_error, taken.details
        memory.out_of_fold, memory.fold_weights = [], []
        source = f"{taken.name}, {chosen.origin}, {int(counts.sum()):,} examples"
        report(fit, source, counts, doubt(taken.transition, counts, chosen.accuracy))

    def _named(self, fit: Fit, found: Candidate) -> tuple[Candidate, bool]:
        """Let trusted labels name the rows; rows that they have made, and what goes with a T(x), have their names."""
        transition = found.transition
        if found.named or found.details or transition.layout != torch.strided:
            return found, False
        trusted = ask_trusted(fit, self.predict) if exchangeable(transition, ASKED) else None
        order, decided = name_classes(transition, trusted, of_noisy_labels=True)
        if not decided:
            return found, False
        error = found.standard_error
        return replace(
            found, transition=transition[order], standard_error=None if error is None else error[order]
        ), True

    @staticmethod
    def _usable(fit: Fit, found: list[Candidate]) -> list[Candidate]:
        """Return those that the correction takes, which may refuse a T that is hardly invertible; at least one.

        Expectation maximisation never leaves a zero, so a little of T is mixed with labels drawn at random; not of one
        that has to stay sparse.
        """
        assert fit.memory.correction is not None
        correction = fit.memory.correction
        usable, failure = [], None
        for candidate in found:
            try:
                correction.set_transition(candidate.transition, learn=False)
                transition = candidate.transition.to_dense()
                if not isinstance(correction.T, SparseTransition):
                    transition = (1 - _AT_RANDOM) * transition + _AT_RANDOM / len(transition)
                    correction.set_transition(transition, learn=False)
            except UserError as error:
                failure = failure or error
                rank_zero_info(f"{candidate.name} is left out: {error}")
            else:
                estimate = candidate.transition.to_dense()
                usable.append(replace(candidate, transition=transition, estimate=estimate, details={}))
        if failure is not None and not usable:
            raise failure
        return usable

    def _ask(self, fit: Fit) -> list[tuple[Candidate, Tensor]]:
        """Return what each estimator finds, with the numbers of labels; at least one."""
        estimators = self._estimators(fit)
        found, failure = [], None
        for estimator in estimators:
            try:
                found.append(self._estimate(fit, estimator))
            except UserError as error:
                failure = failure or error
                if len(estimators) > 1:
                    rank_zero_info(f"{type(estimator).__name__} is left out: {error}")
        if failure is not None and not found:
            raise failure
        return found

    def _estimate(self, fit: Fit, estimator: TransitionEstimator) -> tuple[Candidate, Tensor]:
        share = fit.trainer.strategy.broadcast
        if fit.memory.out_of_fold and "features" not in estimator.needs:  # features of different networks do not mix
            transition = within_fit.estimate_from(fit.trainer, whole(fit.memory.out_of_fold), estimator)
            counts: Tensor = estimator.class_counts
        else:
            loader = within_fit.estimation_loader(fit.trainer, fit.module)
            transition = within_fit.estimate(
                fit.trainer, fit.module, loader, estimator, self.predict, self.feature_layer
            )
            counts = fit.trainer.strategy.reduce(estimator.class_counts.clone(), reduce_op="sum")
        candidate = Candidate(
            type(estimator).__name__,
            transition,
            standard_error=share(self._standard_error(estimator)),
            details=share({name: value.cpu() for name, value in estimator.details().items()}),
            named="clean_labels" in estimator.needs,
        )
        return candidate, counts.cpu()

    @staticmethod
    def _standard_error(estimator: TransitionEstimator) -> Tensor | None:
        try:
            error = estimator.standard_error()
        except UserError as problem:  # T-hat is there, and a stage of training with it
            rank_zero_warn(f"T-hat goes without standard errors. {problem}")
            return None
        return None if error is None else error.cpu()

    @property
    def config(self) -> dict[str, Any]:
        """Its arguments, by their names."""
        return self._config

    def state_dict(self) -> dict[str, Any]:
        """Return what the weights were that T-hat comes from."""
        return {"epoch": self.epoch, "checkpoint": self.checkpoint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        self.epoch, self.checkpoint = state["epoch"], state["checkpoint"]
