"""Refining T-hats by networks that are trained with them, and choosing one without clean labels."""

from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.errors import UserError
from noisylightning.estimators import within_fit
from noisylightning.functional.bootstrap import standard_deviation
from noisylightning.functional.consensus import paired_gain
from noisylightning.functional.expectation_maximization import expected_counts, log_likelihood, maximize
from noisylightning.functional.names import decide_names, exchangeable, name_rows
from noisylightning.phases.base import Candidate, Fit
from noisylightning.phases.folds import FoldsPhase
from noisylightning.phases.report import report

_SURE = 2.0  # standard errors by which T must foretell labels better than the identity
_REPLICATES = 100  # for the standard errors of the last round
_MAX_REPLICATED = 2**24  # entries of all replicates together


class RefinementPhase(FoldsPhase):
    """Refine each T-hat in rounds, and take the one that foretells the labels best.

    In a round K networks are trained with a T in the loss, each without one of K parts of the data, going on from the
    networks of the round before. What they say of the parts that they have not seen refines T by a step of expectation
    maximisation, and the likelihood of the labels there tells how good T is. The identity, cross-entropy, takes part.
    After the first round the best T goes on alone, beside the identity; after the last it is taken if the labels are
    more probable with it by two standard errors, and T is the identity if they are not.

    Its T-hats are ``fit.memory.candidates``, of which the first is the identity. The fit becomes longer by its epochs.
    """

    name = "refinement"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._round = 0
        self._queue: list[int] = []  # places among the candidates
        self._trained: list[dict[str, Any]] = []  # weights of the running candidate's networks
        self._ended = (0, 0)  # the round and network that end() was last called for

    @property
    def epochs(self) -> int:
        """Epochs of a round."""
        return self.plan.epochs

    def is_skipped(self, fit: Fit) -> bool:
        """Whether there is nothing to refine, or no loss to refine it with."""
        return not self.plan.refines(fit)

    def _candidate(self, fit: Fit) -> Candidate:
        return fit.memory.candidates[self._queue[(self._begun - 1) // self.folds]]

    def begin(self, fit: Fit) -> None:
        """Begin the next network; the first of a round begins the round."""
        if not self.is_skipped(fit) and self._begun == len(self._queue) * self.folds:
            self._round, self._begun = self._round + 1, 0
            everyone = list(range(len(fit.memory.candidates)))
            self._queue = everyone if self._round == 1 else [0, _best(fit.memory.candidates)]
            if self._round == 1:
                self._announce(fit)
        super().begin(fit)

    def _announce(self, fit: Fit) -> None:
        others = self.plan.num_rounds - 1
        epochs = self.epochs * (len(self._queue) + 2 * others) * (self.folds - 1)
        names = ", ".join(candidate.name for candidate in fit.memory.candidates[1:])
        rank_zero_info(
            f"Refining T ({names}): as long as {epochs} epochs, in networks that each leave out one of {self.folds}"
            " parts of the data; choose rounds=0 to take T-hat as it is."
        )

    def _begin_network(self, fit: Fit) -> None:
        memory, candidate = fit.memory, self._candidate(fit)
        fit.module.load_state_dict((memory.fold_weights if self._round == 1 else candidate.weights)[self._fold])
        assert memory.correction is not None
        memory.correction.set_transition(candidate.transition, learn=False)
        self._restart(fit)

    def end(self, fit: Fit) -> None:
        """Let the network predict its part; after the last part refine T, after the last round choose."""
        if self.is_skipped(fit) or self._ended == (self._round, self._begun):
            return
        found, fold = self._predictions(fit), self._fold
        fit.memory.out_of_fold[fold:] = [found]
        self._trained[fold:] = [internals.snapshot(fit.module)]
        if fold == self.folds - 1:
            self._judge(fit)
        self._ended = self._round, self._begun
        if not self.repeats(fit):
            internals.train_on(fit.trainer, self._source)
            self._choose(fit)

    def repeats(self, fit: Fit) -> bool:
        """Tell whether another network is to be trained."""
        another = any(candidate.log_likelihood is not None for candidate in fit.memory.candidates[1:])
        more = self._begun < len(self._queue) * self.folds or (another and self._round < self.plan.num_rounds)
        return more and not self.is_skipped(fit)

    def _judge(self, fit: Fit) -> None:
        """Refine the running candidate, and say how well it then foretells the labels."""
        memory, candidate = fit.memory, self._candidate(fit)
        candidate.weights, self._trained = self._trained, []
        if candidate.is_identity:
            parts = [
                log_likelihood(part["logits"], part["noisy_labels"], candidate.transition)
                for part in memory.out_of_fold
            ]
            candidate.log_likelihood = torch.cat(parts)
            return
        try:
            self._refine(memory.out_of_fold, candidate)
            assert memory.correction is not None
            memory.correction.set_transition(candidate.transition, learn=False)  # which it may refuse
        except UserError as error:
            candidate.log_likelihood, candidate.weights = None, []
            rank_zero_info(f"Round {self._round}, {candidate.name} is left out: {error}")
            return
        gain, spread = _gain(candidate, memory.candidates)
        rank_zero_info(
            f"Round {self._round}, {candidate.name}: log-likelihood of a held-out label {gain:+.4f} ± {spread:.4f}"
            " against no T."
        )
        best = _best(memory.candidates)
        for place, other in enumerate(memory.candidates):  # only one goes on
            if place not in (0, best):
                other.weights = []

    def _refine(self, parts: list[dict[str, Tensor]], candidate: Candidate) -> None:
        """Take a step of expectation maximisation; each part is judged by the T that the others make."""
        transition = candidate.transition
        last = self._round == self.plan.num_rounds
        replicates = _REPLICATES if last and _REPLICATES * transition.numel() <= _MAX_REPLICATED else 0
        counts = [
            expected_counts(part["logits"], part["noisy_labels"], transition, part["index"], replicates)
            for part in parts
        ]
        total = sum(counts[1:], counts[0])
        others = [maximize((total - own)[0]) for own in counts]
        candidate.log_likelihood = torch.cat(
            [
                log_likelihood(part["logits"], part["noisy_labels"], other)
                for part, other in zip(parts, others, strict=True)
            ]
        )
        refined = maximize(total)
        candidate.transition = refined[0].float()
        candidate.standard_error = standard_deviation(refined[1:]).float() if replicates else None

    def _choose(self, fit: Fit) -> None:
        memory = fit.memory
        labels = torch.cat([part["noisy_labels"] for part in memory.out_of_fold])
        counts = labels.bincount(minlength=fit.num_classes)
        best = memory.candidates[_best(memory.candidates)]
        gain, error = (-1.0, 0.0) if best.log_likelihood is None else _gain(best, memory.candidates)
        evidence = f"log-likelihood of a held-out label {gain:+.4f} ± {error:.4f} against no T"
        if gain > _SURE * error:
            order, named = self._names(fit, best)
            memory.transition = best.transition[order]
            memory.standard_error = None if best.standard_error is None else best.standard_error[order]
            report(fit, f"{best.name}, refined in {self.plan.num_rounds} rounds; {evidence}", counts, named=named)
        else:
            found = "each was left out" if best.log_likelihood is None else f"{best.name}: {evidence}"
            memory.transition, memory.standard_error = torch.eye(fit.num_classes), None
            report(fit, "the identity", counts)
            rank_zero_warn(
                f"No T-hat foretells held-out labels better than none ({found}), so T stays the identity and the loss"
                " is not corrected: train for longer (stage_one_epochs, round_epochs), or choose an estimator with"
                " rounds=0 to correct all the same."
            )
        memory.candidates, memory.out_of_fold, memory.fold_weights = [], [], []

    def _names(self, fit: Fit, best: Candidate) -> tuple[Tensor, bool]:
        """Return the order of the rows, and whether trusted labels decide where the noisy ones cannot."""
        transition, groups = best.transition, exchangeable(best.transition)
        fit.module.load_state_dict(best.weights[0])
        trusted = within_fit.trusted_predictions(fit.trainer, fit.module, self.predict, fit.num_classes)
        if trusted is None or not groups:
            return name_rows(transition), False
        assert trusted.clean_labels is not None
        known = trusted.clean_labels >= 0
        labels = trusted.clean_labels[known].cpu()
        decided = all(torch.isin(labels, torch.tensor(group)).any() for group in groups)
        return decide_names(transition, trusted.log_probs[known].cpu(), labels), decided

    @property
    def config(self) -> dict[str, Any]:
        """Nothing beside the plan, which the folds have."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        own = {"round": self._round, "queue": self._queue, "trained": self._trained, "ended": list(self._ended)}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        super().load_state_dict(state)
        self._round, self._queue, self._trained = state["round"], state["queue"], state["trained"]
        self._ended = state["ended"][0], state["ended"][1]


def _gain(candidate: Candidate, candidates: list[Candidate]) -> tuple[float, float]:
    """Return by how much a candidate foretells labels better than the identity, and its standard error."""
    assert candidate.log_likelihood is not None
    assert candidates[0].log_likelihood is not None
    return paired_gain(candidate.log_likelihood, candidates[0].log_likelihood)


def _best(candidates: list[Candidate]) -> int:
    """Return the place of the best candidate but the identity, of those that went on to the last round."""

    def score(place: int) -> Tensor:
        found = candidates[place].log_likelihood
        return torch.tensor(-torch.inf) if found is None else found.mean()

    return max(range(1, len(candidates)), key=lambda place: float(score(place)))
