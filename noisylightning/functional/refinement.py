"""T from networks that were trained with a T: calibration and expectation maximisation on what they have not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.bootstrap import standard_deviation
from noisylightning.functional.calibration import VectorScaling, calibrate
from noisylightning.functional.expectation_maximization import expected_counts, log_likelihood, maximize
from noisylightning.functional.information import MOST_CLASSES, standard_error
from noisylightning.tensors import log_softmax

_STEPS = 5  # after which T-hat moves by less than its standard errors
_ALIKE = 0.3  # times the likelihood of two classes under each other's names
_LEAST_SHARE = 0.25  # of the samples that carry a class's label must be as many in the class
_REPLICATES = 100  # for the standard errors of very many classes
_MAX_REPLICATED = 2**24  # entries of all replicates together
_MAX_AT_ONCE = 2**22  # probabilities in float64


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a network says of samples that it was trained without.

    Attributes:
        logits: Scores of the clean classes, shape ``(N, C)``.
        noisy_labels: Their labels, integers of shape ``(N,)``.
        index: Their places in the data set, integers of shape ``(N,)``.
    """

    logits: Tensor
    noisy_labels: Tensor
    index: Tensor


class Refined(NamedTuple):
    """A T-hat that was refined.

    Attributes:
        transition: T-hat, ``(C, C)``, float64.
        log_likelihood: Of each sample's label, part after part, by the T that the other parts make: ``(N,)``.
        before: The T that the last step went on from.
        parts: The parts with calibrated logits.
        alike: Classes whose rows are made of the surest samples alone.
        surest: These samples of each part.
    """

    transition: Tensor
    log_likelihood: Tensor
    before: Tensor
    parts: list[HeldOut]
    alike: list[int]
    surest: list[HeldOut]

    def standard_error(self) -> Tensor | None:
        """Return that of each entry of T-hat, float64; of more than 128 classes what the last step alone makes of it.

        None of very many classes.

        Raises:
            ValueError: If a class has no sample.
        """
        num_classes = len(self.transition)
        if num_classes <= MOST_CLASSES:
            error = self._standard_error(self.parts)
            if self.alike:
                error[self.alike] = self._standard_error(self.surest)[self.alike]
            return error
        if _REPLICATES * num_classes**2 > _MAX_REPLICATED:
            return None
        counts = [
            expected_counts(part.logits, part.noisy_labels, self.before, part.index, _REPLICATES) for part in self.parts
        ]
        return standard_deviation(maximize(sum(counts[1:], counts[0])[1:]))

    def _standard_error(self, parts: list[HeldOut]) -> Tensor:
        logits, index = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "index"))
        return standard_error(logits, self.transition, index)


def refine(parts: Sequence[HeldOut], transition: Tensor) -> Refined:
    """Refine T by what networks that were trained with it say of samples that they have not seen.

    Five times in turn each part's scores are calibrated by T and its labels
    (:func:`~noisylightning.functional.calibration.calibrate`), and T is made anew by a step of expectation
    maximisation. Classes that labels hardly tell apart keep their scores: how sure a network is of one in the place of
    another cannot be told from their rows of T. These rows are made of the surer half of the samples of each predicted
    class: noise does not depend on the sample, so any will do, and there it matters least how sure the network is.

    Args:
        parts: What each of two networks or more says of the part of the data that it has not seen.
        transition: The T in their loss, ``(C, C)``.

    Returns:
        What was found, the same bits in any order within the parts.

    Raises:
        ValueError: If predictions or labels are none, or a class is all but gone: one class in the place of two
            foretells labels well, and is no T.

    Example:
        >>> clean, generator = torch.arange(2000) % 2, torch.Generator().manual_seed(0)
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> labels = torch.multinomial(T[clean], 1, generator=generator).flatten()
        >>> seen = 4.0 * torch.nn.functional.one_hot(clean, 2), labels, torch.arange(2000)
        >>> parts = [HeldOut(*(column[half] for column in seen)) for half in (slice(0, 1000), slice(1000, 2000))]
        >>> refine(parts, torch.tensor([[0.6, 0.4], [0.4, 0.6]])).transition
        tensor([[0.8343, 0.1657],
                [0.2759, 0.7241]], dtype=torch.float64)
    """
    scalings = [VectorScaling.identity(len(transition)) for _ in parts]
    chosen = [_surer_half(part.logits) for part in parts]
    for _ in range(_STEPS):
        before, alike = transition, _alike(transition)
        scalings = [
            calibrate(part.logits, part.noisy_labels, before, part.index, scaling, alike)
            for part, scaling in zip(parts, scalings, strict=True)
        ]
        scaled = [replace(part, logits=scaling(part.logits)) for part, scaling in zip(parts, scalings, strict=True)]
        surest = [_only(part, rows) for part, rows in zip(scaled, chosen, strict=True)]
        counts, whole = _counts(scaled, before)
        total = whole
        if alike:
            of_surest, sure = _counts(surest, before)
            alike = [row for row in alike if sure[row].sum() >= _LEAST_SHARE * whole[row].sum()]
            counts = [_with_rows(own, few, alike) for own, few in zip(counts, of_surest, strict=True)]
            total = _with_rows(whole, sure, alike)
        transition = maximize(total)
    _require_every_class(whole)
    likelihood = held_out_log_likelihood(parts, [maximize(total - own) for own in counts])
    return Refined(transition, likelihood, before, scaled, alike, surest)


def held_out_log_likelihood(parts: Sequence[HeldOut], transitions: Sequence[Tensor]) -> Tensor:
    """Log-likelihood of every sample's label, each part by a T of its own and as sure as its labels allow by that.

    Args:
        parts: What networks say of samples that they have not seen.
        transitions: A T for each part, ``(C, C)``.

    Returns:
        float64 of shape ``(N,)``, part after part.

    Example:
        >>> seen = HeldOut(torch.zeros(2, 2), torch.tensor([0, 1]), torch.arange(2))
        >>> held_out_log_likelihood([seen], [torch.eye(2)]).exp()
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    found = []
    for part, transition in zip(parts, transitions, strict=True):
        scaling = calibrate(part.logits, part.noisy_labels, transition, part.index)
        found.append(log_likelihood(scaling(part.logits), part.noisy_labels, transition))
    return torch.cat(found)


def foretold(parts: Sequence[HeldOut], transition: Tensor) -> Tensor:
    """Tell of every sample whether its label is the one that its network holds most probable.

    Args:
        parts: What networks say of samples that they have not seen.
        transition: The T in their loss, ``(C, C)``.

    Returns:
        bool of shape ``(N,)``, part after part.

    Example:
        >>> seen = HeldOut(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), torch.arange(2))
        >>> foretold([seen], torch.eye(2))
        tensor([ True, False])
    """
    rows = max(1, _MAX_AT_ONCE // len(transition))
    found = []
    for part in parts:
        T = transition.to(part.logits.device).double()
        for logits, labels in zip(part.logits.split(rows), part.noisy_labels.split(rows), strict=True):
            found.append((logits.double().softmax(dim=1) @ T).argmax(dim=1) == labels)
    return torch.cat(found)


def _alike(transition: Tensor) -> list[int]:
    """Return the classes that give so much to each other that labels hardly tell which is which."""
    own = transition.diagonal()
    likelier = transition * transition.T > _ALIKE * own[:, None] * own
    found: list[int] = likelier.fill_diagonal_(False).any(dim=1).nonzero()[:, 0].tolist()
    return found


def _surer_half(logits: Tensor) -> Tensor:
    """Return which samples are of the surer half of those of their predicted class."""
    surest, predicted = log_softmax(logits.double()).max(dim=1)
    chosen = torch.zeros_like(predicted, dtype=torch.bool)
    for place in predicted.unique():
        own = predicted == place
        chosen |= own & (surest >= surest[own].median())
    return chosen


def _only(part: HeldOut, rows: Tensor) -> HeldOut:
    return HeldOut(part.logits[rows], part.noisy_labels[rows], part.index[rows])


def _counts(parts: Sequence[HeldOut], transition: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the expected counts of each part, and those of all."""
    counts = [expected_counts(part.logits, part.noisy_labels, transition)[0] for part in parts]
    return counts, sum(counts[1:], counts[0])


def _with_rows(counts: Tensor, other: Tensor, rows: list[int]) -> Tensor:
    """Return counts with some rows of others."""
    return counts.index_copy(0, torch.tensor(rows, device=counts.device, dtype=torch.long), other[rows])


def _require_every_class(counts: Tensor) -> None:
    samples, labels = counts.sum(dim=1), counts.sum(dim=0)
    least = int((samples / labels.clamp_min(1)).argmin())
    if samples[least] < _LEAST_SHARE * labels[least]:
        raise BadValue(
            f"By it class {least} has {float(samples[least]):.0f} samples, though {float(labels[least]):.0f} carry its"
            " label, so that another class stands for two."
        )
