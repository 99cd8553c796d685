"""Refining T-hats by networks that are trained with them, and choosing one without clean labels."""

from dataclasses import replace
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.corrections import Correction
from noisylightning.errors import UserError
from noisylightning.estimators import within_fit
from noisylightning.functional.consensus import paired_gain, smallest_distance
from noisylightning.functional.refinement import HeldOut, Refined, foretold, held_out_log_likelihood, refine
from noisylightning.functional.verdict import GainIn
from noisylightning.phases.base import Candidate, Fit, Memory, suited
from noisylightning.phases.evidence import (
    SURE,
    contenders,
    gain_over,
    in_accuracy,
    in_log_likelihood,
    is_worse,
)
from noisylightning.phases.folds import FoldsPhase, Plan
from noisylightning.phases.naming import Answers, ask_trusted, name_classes
from noisylightning.phases.report import report

_ON_BALANCE = 1.0  # of trusted labels, where noisy ones are neither for T nor for the identity
_ENOUGH_TRUSTED = 10  # labels, that they decide whether T is any good


class RefinementPhase(FoldsPhase):
    """Refine each T-hat in rounds, and take the one that foretells the labels best.

    In a round K networks are trained with a T in the loss, each without one of K parts of the data, going on from the
    networks of the round before. What they say of the parts that they have not seen, calibrated, refines T by
    expectation maximisation, and the likelihood of the labels there tells how good T is. The identity, cross-entropy,
    takes part. After the first round the best T goes on alone, beside the identity; a round that makes labels less
    probable by two standard errors, since its networks know theirs by heart, changes nothing. In the end T is taken if
    labels are more probable with it, by two standard errors, than with the identity and than by their shares alone.
    If they are so much less probable, noise may depend on the sample, where neither likelihood nor expectation
    maximisation holds: the T-hat with which most labels were foretold in the first round is then taken as its estimator
    gave it, if they were more by three standard errors. Else T is the identity. Where there are trusted labels, ten or
    more, and they are so much more probable, or less, they decide; also where noisy labels are for neither, and then
    one standard error is enough.

    Its T-hats are ``fit.memory.candidates``, of which the first is the identity. The fit becomes longer by its epochs.
    """

    name = "refinement"

    def __init__(self, plan: Plan, predict: within_fit.Predict) -> None:
        super().__init__(plan, predict)
        self._over = 0  # rounds
        self._trained: list[dict[str, Any]] = []  # weights of the running candidate's networks
        self._ended = True  # whether what follows the running network was done, which is not to be done twice

    def epochs(self, fit: Fit) -> int:
        """Epochs of each network."""
        return self.plan.epochs(fit)

    def is_skipped(self, fit: Fit) -> bool:
        """Whether there is nothing to refine, or no loss to refine it with."""
        return not self.plan.refines(fit)

    @property
    def _place(self) -> int:
        """The place of the running candidate."""
        return (self._begun - 1) // self.folds

    def begin(self, fit: Fit) -> None:
        """Begin the next network."""
        if self.is_skipped(fit):
            return
        if not self._over and not self._begun:
            self._announce(fit)
        super().begin(fit)
        self._ended = False

    def _announce(self, fit: Fit) -> None:
        candidates = fit.memory.candidates
        trainings = len(candidates) + 2 * (self.plan.num_rounds - 1)
        names = ", ".join(candidate.name for candidate in candidates[1:])
        rank_zero_info(
            f"Refining T ({names}): as long as {trainings * (self.folds - 1) * self.epochs(fit)} epochs, in networks"
            f" that each leave out one of {self.folds} parts of the data; choose rounds=0 to take T-hat as it is."
        )

    def _begin_network(self, fit: Fit) -> None:
        memory, candidate = fit.memory, fit.memory.candidates[self._place]
        fit.module.load_state_dict((candidate.weights if self._over else memory.fold_weights)[self._fold])
        assert memory.correction is not None
        memory.correction.set_transition(suited(memory.correction, candidate.transition), learn=False)
        self._restart(fit)

    def end(self, fit: Fit) -> None:
        """Let the network predict its part; after the last part refine T, after the last round choose."""
        if self.is_skipped(fit):
            return
        memory = fit.memory
        if not self._ended:
            fold = self._fold
            memory.out_of_fold[fold:] = [self._predictions(fit, self._only(fold, held_out=True))]
            self._trained[fold:] = [internals.snapshot(fit.module)]
            if fold == self.folds - 1:
                self._judge(memory)
            self._ended = True
        if memory.candidates and not self.repeats(fit):
            self._choose(fit)

    def goes_on(self) -> bool:
        """Tell that its networks go on from those of the round before."""
        return True

    def repeats(self, fit: Fit) -> bool:
        """Tell whether another network is to be trained: not where no T-hat is left."""
        return self._over < self.plan.num_rounds and len(fit.memory.candidates) > 1 and not self.is_skipped(fit)

    def _judge(self, memory: Memory) -> None:
        """Refine the running candidate and say how well it foretells the labels; who is out keeps no weights.

        Of those left in the end it is the one whose rows are farthest apart: classes whose rows are alike no network
        can tell apart.
        """
        candidates, over, begun = list(memory.candidates), self._over, self._begun
        assert memory.correction is not None
        held_out = [HeldOut(**part) for part in memory.out_of_fold]
        judged = self._judged(candidates, held_out, memory.correction)
        unrefined = memory.unrefined if over else self._unrefined(memory, judged)
        candidates[self._place] = judged
        race = contenders(candidates)
        if begun == len(candidates) * self.folds:
            best = max(race, key=lambda place: smallest_distance(candidates[place].transition), default=None)
            candidates = [candidates[place] for place in (0, best) if place is not None]
            over, begun = over + 1, 0
        else:
            candidates = [
                candidate if place in (0, *race) else replace(candidate, weights=[])
                for place, candidate in enumerate(candidates)
            ]
        # All at once, so that an interruption leaves all to be done again.
        memory.candidates, memory.unrefined = candidates, unrefined
        self._over, self._begun, self._trained = over, begun, []

    def _unrefined(self, memory: Memory, judged: Candidate) -> Candidate | None:
        """Return the T-hat that foretells most labels until now, as it was estimated, with what trusted ones ask."""
        leader, running = memory.unrefined, memory.candidates[self._place]
        if running.estimate is None or judged.foretold is None:
            return leader
        if leader is not None and leader.foretold is not None and leader.foretold.sum() >= judged.foretold.sum():
            return leader
        return replace(
            running, transition=running.estimate, foretold=judged.foretold, weights=self._trained[:1], rounds=0
        )

    def _judged(self, candidates: list[Candidate], held_out: list[HeldOut], correction: Correction) -> Candidate:
        running, number = candidates[self._place], self._over + 1
        if not self._over:
            running = replace(running, foretold=foretold(held_out, running.transition))
        if running.is_identity:
            found = held_out_log_likelihood(held_out, [running.transition] * len(held_out))
            trained = replace(running, weights=self._trained, log_likelihood=found)
            return running if is_worse(trained, running) else trained
        try:
            refined = replace(self._refined(running, held_out), weights=self._trained)
            correction.set_transition(suited(correction, refined.transition), learn=False)  # which it may refuse
        except UserError as error:
            rank_zero_info(f"Round {number}, {running.name} is left out: {error}")
            return replace(running, weights=[], log_likelihood=None)
        if is_worse(refined, running):
            gain, spread = gain_over(running, refined)
            rank_zero_info(
                f"Round {number}, {running.name}: log-likelihood of a held-out label {gain:+.4f} ± {spread:.4f} against"
                " the round before, so T-hat stays as it was."
            )
            return running
        gain, spread = gain_over(candidates[0], refined)
        rank_zero_info(
            f"Round {number}, {running.name}: log-likelihood of a held-out label {gain:+.4f} ± {spread:.4f} against"
            " no T."
        )
        return refined

    def _refined(self, candidate: Candidate, held_out: list[HeldOut]) -> Candidate:
        found = refine(held_out, candidate.transition)
        return replace(
            candidate,
            transition=found.transition.float(),
            log_likelihood=found.log_likelihood,
            standard_error=_standard_error(found),
            rounds=self._over + 1,
        )

    def _choose(self, fit: Fit) -> None:
        memory = fit.memory
        assert memory.correction is not None
        internals.train_on(fit.trainer, self._source)
        labels = torch.cat([part["noisy_labels"] for part in memory.out_of_fold])
        counts = labels.bincount(minlength=fit.num_classes)
        identity, *others = memory.candidates
        gain, error, evidence, bar = 0.0, 0.0, "each was left out", SURE
        best = None
        if others:
            best, gain, error, memory.gain_in, evidence = _evidence(others[0], memory, labels)
            trusted = self._ask(fit, best)
            order, memory.named = name_classes(best.transition, trusted)
            if trusted is not None and len(trusted.labels) >= _ENOUGH_TRUSTED:
                plain = self._ask(fit, identity)
                assert plain is not None
                gain_trusted, error_trusted = paired_gain(trusted.log_likelihood(order), plain.log_likelihood())
                undecided = abs(gain) <= SURE * error
                if undecided or abs(gain_trusted) > SURE * error_trusted:
                    bar = _ON_BALANCE if undecided else SURE
                    gain, error, memory.gain_in = gain_trusted, error_trusted, "log-likelihood"
                    evidence = f"log-likelihood of a trusted label {gain:+.4f} ± {error:.4f} against no T"
            evidence = f"{best.name}, {_in_words(best.rounds)}; {evidence}"
        memory.gain = gain, error
        if gain > bar * error:
            assert best is not None
            standard_error = None if best.standard_error is None else best.standard_error[order]
            memory.transition = suited(memory.correction, best.transition[order])
            memory.standard_error = standard_error
            report(fit, evidence, counts)
        else:
            memory.transition = suited(memory.correction, identity.transition)
            memory.standard_error, memory.named = None, False
            report(fit, "the identity", counts)
            rank_zero_warn(
                f"No T-hat foretells held-out labels better than none ({evidence}), so T stays the identity and the"
                " loss is not corrected: train for longer (stage_one_epochs, round_epochs), give trusted labels"
                " (trusted), or choose an estimator with rounds=0 to correct all the same."
            )
        assert memory.chosen is not None
        fit.module.load_state_dict(memory.chosen.weights)  # for a stage two that goes on from them
        internals.share_buffers(fit.trainer, fit.module)
        memory.candidates, memory.out_of_fold, memory.fold_weights = [], [], []
        memory.unrefined = None

    def _ask(self, fit: Fit, candidate: Candidate) -> Answers | None:
        fit.module.load_state_dict(candidate.weights[0])
        return ask_trusted(fit, self.predict)

    @property
    def config(self) -> dict[str, Any]:
        """Nothing beside the plan, which the folds have."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        return super().state_dict() | {"over": self._over, "trained": self._trained, "ended": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        super().load_state_dict(state)
        self._over, self._trained, self._ended = state["over"], state["trained"], state["ended"]


def _standard_error(found: Refined) -> Tensor | None:
    """Return that of T-hat, where it can be had."""
    try:
        error = found.standard_error()
    except UserError as problem:  # T-hat itself is there
        rank_zero_warn(f"T-hat goes without standard errors: {problem}")
        return None
    return None if error is None else error.float()


def _evidence(best: Candidate, memory: Memory, labels: Tensor) -> tuple[Candidate, float, float, GainIn, str]:
    """Return the T-hat to take, if any, by how much labels are foretold better with it, and that in words.

    Where noise depends on the sample, a right T makes labels less probable than they are, and a network takes a part of
    the noise for confusion of classes, so that refinement leaves too little of it in T-hat.
    """
    identity, unrefined = memory.candidates[0], memory.unrefined
    gain, error, rival = in_log_likelihood(best, identity, labels)
    if gain < -SURE * error and unrefined is not None:
        more = in_accuracy(unrefined, identity, labels)
        if more is not None:
            gain, error, rival = more
            told = f"share of held-out labels foretold {gain:+.4f} ± {error:.4f} against {rival}"
            return unrefined, gain, error, "accuracy", told
    told = f"log-likelihood of a held-out label {gain:+.4f} ± {error:.4f} against {rival}"
    return best, gain, error, "log-likelihood", told


def _in_words(rounds: int) -> str:
    """Say how often T-hat was refined."""
    if not rounds:
        return "not refined, as noise seems to depend on the sample"
    return f"refined in {rounds} round{'s' * (rounds > 1)}"
