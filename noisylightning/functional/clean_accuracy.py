r"""How good a classifier is on clean labels, from noisy ones, where noise depends on the class alone.

Let ``M[i, k] = p(clean = i, predicted = k)``. Given the clean class a held-out sample's noisy label does not depend on
what is predicted, so ``p(noisy = j, predicted = k) = (T' M)[j, k]``, and :math:`T^{-\top}` times what was counted is an
unbiased estimate of M. Everything here is a function of M. Its interval has two parts:

- sampling: a statistic with the gradient W with respect to M is a mean over samples of
  :math:`f = (T^{-1} W)[\text{noisy}, \text{predicted}]`, whose variance is counted too;
- T-hat: :math:`d\hat M = -T^{-\top} dT^\top M`, so the statistic's gradient with respect to T is :math:`-M f^\top`.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.probabilities import check_labels
from noisylightning.transition import StructuredTransition, Transition, as_transition
from noisylightning.transition.check import LARGEST_CONDITION

LARGE_CONDITION = 100.0
"""The condition number of T past which :func:`condition_warning` speaks."""

UNRESOLVED = 0.25
"""The relative error of T-hat in its weakest direction past which :func:`condition_warning` speaks."""

Average = Literal["micro", "macro", "none"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate and its standard error, tensors of one shape, float64.

    Example:
        >>> Estimate(torch.tensor(0.9), torch.tensor(0.01)).interval()
        (tensor(0.8804), tensor(0.9196))
    """

    value: Tensor
    standard_error: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the lower and the upper bound of the normal interval, which may reach below 0 or above 1.

        Args:
            level: How often the interval is to cover the truth, in (0, 1).

        Raises:
            ValueError: If ``level`` is outside (0, 1).
        """
        if not 0 < level < 1:
            raise BadValue(f"level must lie in (0, 1), got {level}: pass level=0.95.")
        half = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - half, self.value + half


def count_pairs(noisy_labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count how often samples with noisy label j are predicted to be of class k.

    Args:
        noisy_labels: Integers of shape ``(N,)``.
        predicted: Predicted classes, integers of shape ``(N,)``.
        num_classes: The number of classes C.

    Returns:
        The counts, int64 of shape ``(C, C)``; those of parts of the data add up.

    Raises:
        TypeError: If labels or predictions are not integers.
        ValueError: If their shapes differ, or one is no class.

    Example:
        >>> count_pairs(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), num_classes=2)
        tensor([[1, 0],
                [1, 1]])
    """
    check_labels(noisy_labels, num_classes, "noisy labels")
    check_labels(predicted, num_classes, "predicted classes")
    if noisy_labels.shape != predicted.shape:
        raise BadValue(
            f"noisy labels are of shape {tuple(noisy_labels.shape)} but predicted classes of"
            f" {tuple(predicted.shape)}: give one of each a sample."
        )
    cells = noisy_labels.long() * num_classes + predicted.long()
    return cells.flatten().bincount(minlength=num_classes**2).view(num_classes, num_classes)


def clean_confusion_matrix(
    counts: Tensor, transition: Tensor | Transition | str | Path, standard_error: Tensor | None = None
) -> Estimate:
    r"""Estimate ``M[i, k] = p(clean = i, predicted = k)`` from noisy labels, :math:`T^{-\top}` times what was counted.

    Args:
        counts: Of :func:`count_pairs`, on samples that the network was not trained on; shape ``(C, C)``.
        transition: T, row-stochastic: a tensor, a file's path or a :class:`~noisylightning.transition.Transition`.
        standard_error: That of each entry of T, shape ``(C, C)``, where T is an estimate; the errors of different rows
            are taken to be independent, and within a row see :func:`row_variance`.

    Returns:
        An estimate of shape ``(C, C)`` that sums to one. Entries may be negative: nothing is clipped.

    Raises:
        TypeError: If the counts are not integers.
        ValueError: If shapes do not go together, there are fewer than two samples, or T is singular or depends on the
            sample.

    Example:
        >>> counts = torch.tensor([[36, 4], [14, 46]])
        >>> clean_confusion_matrix(counts, torch.tensor([[0.8, 0.2], [0.0, 1.0]])).value
        tensor([[0.4500, 0.0500],
                [0.0500, 0.4500]], dtype=torch.float64)
    """
    clean = _Clean.of(counts, transition, standard_error)
    # One more in each cell: the normal interval of a few is too narrow, and that of none would have no width.
    seen = clean.seen + 1 / clean.num
    variance = (clean.inverse.square().T @ seen - clean.joint.square()).clamp_min(0) / (clean.num - 1)
    if clean.standard_error is not None:
        variance = variance + clean.column_variance().T @ clean.joint.square()
    return Estimate(clean.joint, variance.sqrt())


def clean_accuracy(
    counts: Tensor,
    transition: Tensor | Transition | str | Path,
    standard_error: Tensor | None = None,
    average: Average = "micro",
) -> Estimate:
    r"""Estimate accuracy or recall on clean labels from noisy ones.

    The accuracy is the mean of :math:`T^{-1}[\text{noisy}, \text{predicted}]`, which is unbiased:
    :math:`\sum_j T_{ij} (T^{-1})_{jk} = 1` if ``i = k``, else 0. (It is backward correction, Patrini et al. 2017,
    Theorem 1, of the zero-one loss.) Recalls are ratios, whose errors come by the delta method, and whose bias is
    taken off in second order (Beale 1962).

    Args:
        counts: As in :func:`clean_confusion_matrix`.
        transition: As there.
        standard_error: As there.
        average: ``"micro"`` for accuracy; ``"none"`` for the recall of each class, the share of its samples that are
            recognised; ``"macro"`` for balanced accuracy, their mean.

    Returns:
        An estimate: a scalar, or of shape ``(C,)`` for ``"none"``. It may be above 1: nothing is clipped.

    Raises:
        TypeError: As in :func:`clean_confusion_matrix`.
        ValueError: As there; also if a recall is asked for and a class has, by T, no sample; or if ``average`` is none
            of these.

    Example:
        >>> counts, T = torch.tensor([[36, 4], [14, 46]]), torch.tensor([[0.8, 0.2], [0.0, 1.0]])
        >>> accuracy = clean_accuracy(counts, T)
        >>> accuracy.value  # of the noisy labels 82 % are predicted
        tensor(0.9000, dtype=torch.float64)
        >>> accuracy.interval()
        (tensor(0.8087, dtype=torch.float64), tensor(0.9913, dtype=torch.float64))
        >>> clean_accuracy(counts, T, average="none").value
        tensor([0.9000, 0.8960], dtype=torch.float64)
    """
    clean = _Clean.of(counts, transition, standard_error)
    right = clean.joint.diagonal()
    eye = torch.eye(len(right), dtype=torch.float64)
    if average == "micro":
        return Estimate(right.sum(), clean.variance(eye).sqrt())
    if average not in ("macro", "none"):
        raise BadValue(f"average must be 'micro', 'macro' or 'none', got {average!r}.")
    shares = clean.joint.sum(dim=1)
    if not bool((shares > 0).all()):
        least = int(shares.argmin())
        raise BadValue(
            f"By T and the noisy labels {float(shares[least]):.4g} of the samples are of class {least}, so its recall"
            " is unknown: give more samples, or ask for the accuracy alone (average='micro')."
        )
    recall = right / shares
    weights = (eye - recall[:, None]) / shares[:, None]  # row i: the gradient of recall i, which M[i] alone enters
    unbiased = clean.recall()
    if average == "macro":
        return Estimate(unbiased.mean(), clean.variance(weights / len(recall)).sqrt())
    squares = clean.inverse.square().T @ clean.seen  # the mean of each f is zero
    variance = (squares * weights.square()).sum(dim=1) / (clean.num - 1)
    if clean.standard_error is not None:
        variance = variance + (clean.column_variance() * (clean.joint @ weights.T).square()).sum(dim=0)
    return Estimate(unbiased, variance.sqrt())


# Two networks


@dataclass(frozen=True, eq=False)
class PairedMoments:
    """What :func:`clean_accuracy_difference` needs to know of samples; those of parts of the data add up, as integers.

    Attributes:
        difference: Counts of (noisy, predicted) of the one network minus those of the other, int64 ``(C, C)``.
        squares: Sum of the squared differences, each divided by the largest that T allows, in fixed point, int64.
        num: Number of samples, int64.
    """

    difference: Tensor
    squares: Tensor
    num: Tensor


def paired_moments(noisy_labels: Tensor, predicted: Tensor, other: Tensor, inverse: Tensor) -> PairedMoments:
    """Sum up the differences between two networks' scores on the same samples.

    Args:
        noisy_labels: Integers of shape ``(N,)``.
        predicted: Classes that the one network predicts, integers of shape ``(N,)``.
        other: Those that the other predicts.
        inverse: T^-1, of :func:`invert`.

    Raises:
        TypeError: If labels or predictions are not integers.
        ValueError: If their shapes differ, or one is no class.
    """
    difference = count_pairs(noisy_labels, predicted, len(inverse)) - count_pairs(noisy_labels, other, len(inverse))
    scores = inverse.to(noisy_labels.device)
    gain = (scores[noisy_labels, predicted] - scores[noisy_labels, other]) / _span(scores)
    return PairedMoments(difference, to_fixed(gain.square()).sum(), torch.tensor(gain.numel(), device=gain.device))


def difference_of(moments: PairedMoments, inverse: Tensor, standard_error: Tensor | None = None) -> Estimate:
    """Estimate the difference of two accuracies from :func:`paired_moments`; arguments as in these."""
    num = int(moments.num)
    _require_two(num)
    difference = moments.difference.cpu().double() / num
    value = (inverse * difference).sum()
    square = from_fixed(moments.squares.cpu()) / num * _span(inverse) ** 2
    variance = (square - value.square()).clamp_min(0) / (num - 1)
    if standard_error is not None:
        gradient = inverse.T @ difference @ inverse.T
        variance = variance + row_variance(gradient, standard_error.cpu().double()).sum()
    return Estimate(value, variance.sqrt())


def clean_accuracy_difference(
    noisy_labels: Tensor,
    predicted: Tensor,
    other: Tensor,
    transition: Tensor | Transition | str | Path,
    standard_error: Tensor | None = None,
) -> Estimate:
    r"""Estimate by how much one network's accuracy on clean labels is above another's, from noisy labels.

    The mean of :math:`T^{-1}[\text{noisy}, a] - T^{-1}[\text{noisy}, b]` over the same samples: where the two predict
    alike nothing is added to its variance, nor by an error of T.

    Args:
        noisy_labels: Of samples that neither network was trained on, integers of shape ``(N,)``.
        predicted: Classes a that the one network predicts, integers of shape ``(N,)``.
        other: Classes b that the other predicts.
        transition: As in :func:`clean_confusion_matrix`.
        standard_error: As there.

    Returns:
        A scalar estimate, positive where the first network is better.

    Raises:
        TypeError: If labels or predictions are not integers.
        ValueError: If shapes do not go together, a label is no class, there are fewer than two samples, or T is
            singular or depends on the sample.

    Example:
        >>> noisy, T = torch.tensor([0, 1] * 50), torch.tensor([[0.8, 0.2], [0.2, 0.8]])
        >>> first, second = noisy.clone(), noisy.clone()
        >>> second[:10] = 0
        >>> gain = clean_accuracy_difference(noisy, first, second, T)
        >>> gain.value, gain.interval()[0] > 0
        (tensor(0.0833, dtype=torch.float64), tensor(True))
    """
    inverse = invert(transition)
    _check_standard_error(standard_error, len(inverse))
    return difference_of(paired_moments(noisy_labels, predicted, other, inverse), inverse, standard_error)


def _span(inverse: Tensor) -> Tensor:
    """The largest difference within a row: no gain is larger."""
    return (inverse.amax(dim=1) - inverse.amin(dim=1)).max()


# T


def invert(transition: Tensor | Transition | str | Path) -> Tensor:
    """``T^-1`` in float64 on the CPU, ``(C, C)``; a T with structure is inverted by its structure.

    Args:
        transition: As in :func:`clean_confusion_matrix`.

    Raises:
        ValueError: If T is singular, or depends on the sample.

    Example:
        >>> invert(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([[ 1.,  0.],
                [-1.,  2.]], dtype=torch.float64)
    """
    known = as_transition(transition)
    if not known.is_class_conditional:
        raise BadValue(
            f"{type(known).__name__} depends on the sample, but accuracy on clean labels follows from noisy ones only"
            " where noise depends on the class alone: give a T (C, C), or trusted labels"
            " (prediction_powered_accuracy)."
        )
    with torch.no_grad():
        if isinstance(known, StructuredTransition):
            own = deepcopy(known).cpu().double()
            condition = own.condition_number()
            if condition <= LARGEST_CONDITION:
                own.factorize(LARGEST_CONDITION)
                inverse = own.inverse_rows(torch.arange(own.num_classes), torch.float64)
        else:
            inverse, singular = torch.linalg.inv_ex(known.to_dense().cpu().double())
            condition = math.inf if bool(singular) else condition_of(inverse)
    if not condition <= LARGEST_CONDITION:
        raise BadValue(
            f"T is singular (condition number {condition:.4g}), so accuracy on clean labels does not follow from noisy"
            " ones: estimate T anew, or give trusted labels (prediction_powered_accuracy)."
        )
    return inverse


def condition_of(inverse: Tensor) -> float:
    """The condition number of T, the largest absolute row sum of ``T^-1``."""
    return float(inverse.abs().sum(dim=1).max())


def condition_warning(transition: Tensor | Transition | str | Path, standard_error: Tensor | None = None) -> str | None:
    r"""Say in a sentence that T is nearly singular, or that its standard errors do not exclude that it is.

    Near a singular T intervals are wide. By the delta method they are too narrow where :math:`T^{-1} dT` is not small:
    T-hat plus an error of one standard deviation is then singular. Its size is taken to be the root of the largest row
    or column sum of the variances of its entries.

    Args:
        transition: As in :func:`clean_confusion_matrix`.
        standard_error: As there.

    Returns:
        The sentence; None where there is nothing to say.

    Raises:
        ValueError: As :func:`invert`.

    Example:
        >>> condition_warning(torch.tensor([[0.504, 0.496], [0.496, 0.504]]))
        'T is nearly singular (condition number 125): the interval of the clean accuracy is so much wider, and ...
        >>> condition_warning(torch.tensor([[0.8, 0.2], [0.2, 0.8]]), torch.full((2, 2), 0.2))
        'The standard errors of T-hat do not exclude a singular T (condition number 1.67): the interval of the ...
    """
    inverse = invert(transition)
    _check_standard_error(standard_error, len(inverse))
    condition = condition_of(inverse)
    if standard_error is not None:
        variance = inverse.square() @ standard_error.cpu().double().square()
        if max(float(variance.sum(dim=0).max()), float(variance.sum(dim=1).max())) > UNRESOLVED**2:
            return (
                f"The standard errors of T-hat do not exclude a singular T (condition number {condition:.3g}): the"
                " interval of the clean accuracy is too narrow; estimate T from more samples."
            )
    if condition > LARGE_CONDITION:
        return (
            f"T is nearly singular (condition number {condition:.3g}): the interval of the clean accuracy is so much"
            " wider, and the least error of T moves it; trusted labels would tell more."
        )
    return None


def row_variance(gradient: Tensor, standard_error: Tensor) -> Tensor:
    r"""Return the variance of :math:`\sum_j g_{ij} \hat T_{ij}` for each row i of T-hat.

    The entries of a row sum to one, so their errors sum to zero. All but the least certain entry are taken to have one
    correlation with each other, the one with which their sum has the standard error of that entry. For rows of two
    entries other than zero, for symmetric noise, and for a row with one parameter that is exact; for the frequencies of
    drawn labels (4,800 random rows with 4 to 50 entries) the standard error that follows is off by 7 % or less in nine
    of ten cases.

    Args:
        gradient: g, float64 of shape ``(C, C)``.
        standard_error: That of each entry of T-hat, float64 of shape ``(C, C)``.

    Returns:
        Shape ``(C,)``.

    Example:
        >>> error = torch.tensor([[0.02, 0.01, 0.01], [0.0, 0.0, 0.0], [0.03, 0.03, 0.0]], dtype=torch.float64)
        >>> row_variance(torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0], [1.0, -1.0, 0.0]]).double(), error)
        tensor([0.0000, 0.0000, 0.0036], dtype=torch.float64)
    """
    largest = standard_error.argmax(dim=1, keepdim=True)
    steps = gradient - gradient.gather(1, largest)
    errors = standard_error * steps
    return _row_variance(errors.square().sum(dim=1), errors.sum(dim=1), standard_error)


def _row_variance(apart: Tensor, together: Tensor, standard_error: Tensor) -> Tensor:
    """Mix the variance of sums of independent errors with that of errors that go together."""
    most = standard_error.amax(dim=1)
    squares = standard_error.square().sum(dim=1) - most.square()
    product = (standard_error.sum(dim=1) - most).square() - squares  # 2 sum s_a s_b over pairs
    correlation = ((most.square() - squares) / product).clamp(-1, 1).where(product > 1e-12 * squares, 0.0)
    correlation = correlation.view(-1, *[1] * (apart.ndim - 1))
    return ((1 - correlation) * apart + correlation * together.square()).clamp_min(0)


# Counts and T together


@dataclass(frozen=True, eq=False)
class _Clean:
    """What every statistic of M is made of.

    Attributes:
        inverse: T^-1.
        seen: Shares of (noisy, predicted).
        joint: M.
        num: Number of samples.
        standard_error: That of T.
    """

    inverse: Tensor
    seen: Tensor
    joint: Tensor
    num: int
    standard_error: Tensor | None

    @classmethod
    def of(cls, counts: Tensor, transition: Tensor | Transition | str | Path, standard_error: Tensor | None) -> _Clean:
        inverse = invert(transition)
        check_counts(counts, len(inverse))
        _check_standard_error(standard_error, len(inverse))
        num = int(counts.sum())
        _require_two(num)
        seen = counts.cpu().double() / num
        error = None if standard_error is None else standard_error.cpu().double()
        return cls(inverse, seen, inverse.T @ seen, num, error)

    def variance(self, weights: Tensor) -> Tensor:
        """The variance of a statistic with this gradient with respect to M, a scalar."""
        scores = self.inverse @ weights
        mean = (self.seen * scores).sum()
        sampling = (self.seen * (scores - mean).square()).sum() / (self.num - 1)
        if self.standard_error is None:
            return sampling
        return sampling + row_variance(self.joint @ scores.T, self.standard_error).sum()

    def recall(self) -> Tensor:
        """The recall of each class, right over share, less the bias of this ratio of two noisy sums: ``(C,)``.

        Of sums m and s it is ``(m s + Cov(m, s)) / (s^2 + Var(s))`` (Beale 1962), which is finite for any share.
        """
        squares, right, shares = self.inverse.square(), self.joint.diagonal(), self.joint.sum(dim=1)
        variance = (self.seen.sum(dim=1) @ squares - shares.square()) / (self.num - 1)
        covariance = ((self.seen * squares).sum(dim=0) - right * shares) / (self.num - 1)
        return (right * shares + covariance) / (shares.square() + variance)

    def column_variance(self) -> Tensor:
        """The variance of ``sum_a T[b, a] (T^-1)[a, i]`` by T's errors alone, for each row b and each i."""
        assert self.standard_error is not None
        errors, inverse = self.standard_error, self.inverse
        squares, base = errors.square(), inverse[errors.argmax(dim=1)]
        # sum_a (s_a (g_a - g_m))^2 multiplied out: written out it would be C^3 numbers
        apart = squares @ inverse.square() - 2 * base * (squares @ inverse) + base.square() * squares.sum(1, True)
        together = errors @ inverse - base * errors.sum(1, True)
        return _row_variance(apart.clamp_min(0), together, errors)


def check_counts(counts: Tensor, num_classes: int) -> None:
    """Raise unless these are counts of (noisy, predicted).

    Raises:
        TypeError: If they are not integers.
        ValueError: If they are not of shape ``(C, C)``, or one is negative.
    """
    if counts.is_floating_point() or counts.dtype == torch.bool:
        raise BadType(f"counts of (noisy, predicted) must be integers, got {counts.dtype}: count with count_pairs.")
    if counts.shape != (num_classes, num_classes):
        raise BadValue(
            f"T is for {num_classes} classes, but the counts are of shape {tuple(counts.shape)}: pass the T of this"
            " data set."
        )
    if bool((counts < 0).any()):
        raise BadValue(f"counts of (noisy, predicted) hold {int(counts.min())}: they cannot be negative.")


def _require_two(num: int) -> None:
    if num < 2:
        raise BadValue(f"an interval needs at least 2 samples with a noisy label, got {num}: give validation data.")


def _check_standard_error(standard_error: Tensor | None, num_classes: int) -> None:
    if standard_error is None:
        return
    if standard_error.shape != (num_classes, num_classes):
        raise BadValue(
            f"T is for {num_classes} classes, but its standard errors are of shape {tuple(standard_error.shape)}: pass"
            " those of this T."
        )
    if not bool((standard_error.isfinite() & (standard_error >= 0)).all()):
        raise BadValue("a standard error of T is negative or not finite: pass those that its estimator gave.")
