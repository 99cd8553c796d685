"""Accuracy on clean labels from a few trusted labels and many noisy ones, whatever the noise is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.clean_accuracy import Estimate, check_counts, invert
from noisylightning.transition import Transition


def prediction_powered_mean(scores: Tensor, trusted: Tensor, trusted_scores: Tensor, tune: bool = True) -> Estimate:
    r"""Estimate the mean of something that few samples tell, helped by a score that all samples have.

    :math:`\lambda \bar f_N + \overline{(Y - \lambda f)}_n` with the variance
    :math:`\lambda^2 \mathrm{Var}(f) / N + \mathrm{Var}(Y - \lambda f) / n` (prediction-powered inference, Angelopoulos
    et al., Science 2023). It is right on average whatever f is, and precise where f tells much about Y.

    Args:
        scores: f of the N samples without a trusted value, shape ``(N,)``.
        trusted: Y of n other samples, drawn at random from the same, shape ``(n,)``.
        trusted_scores: f of these, shape ``(n,)``.
        tune: Whether :math:`\lambda` is the one of the least variance,
            :math:`\mathrm{Cov}(Y, f) / ((1 + n/N) \mathrm{Var}(f))` (PPI++, Angelopoulos et al. 2023), which is never
            worse than the n alone but for what n samples do not tell of it; else 1, without any bias.

    Returns:
        A scalar estimate.

    Raises:
        ValueError: If shapes do not go together, or there are fewer than two samples of either kind.

    Example:
        >>> f = torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> prediction_powered_mean(f, trusted=torch.tensor([1.0, 0.0]), trusted_scores=torch.tensor([1.0, 0.0])).value
        tensor(0.7500, dtype=torch.float64)
    """
    if trusted.shape != trusted_scores.shape or trusted.ndim != 1 or scores.ndim != 1:
        raise BadValue(
            f"scores (N,), and trusted values and their scores (n,) are needed, got {tuple(scores.shape)},"
            f" {tuple(trusted.shape)} and {tuple(trusted_scores.shape)}: give one of each a sample."
        )
    untrusted, known = (
        _Moments.of(torch.ones(len(some), dtype=torch.long), some.cpu().double(), other.cpu().double())
        for some, other in ((scores, scores), (trusted_scores, trusted))
    )
    return _powered(untrusted, known, tune)


def prediction_powered_accuracy(
    counts: Tensor, wrong: Tensor, right: Tensor, transition: Tensor | Transition | str | Path, tune: bool = True
) -> Estimate:
    r"""Estimate accuracy on clean labels from noisy labels and a few trusted ones, whatever the noise is.

    :func:`prediction_powered_mean` with the score :math:`f = T^{-1}[\text{noisy}, \text{predicted}]` of
    :func:`~noisylightning.functional.clean_accuracy`, and Y = 1 where the prediction is the trusted label. T may be
    wrong, and noise may depend on the sample: the interval is then wider, not wrong. So no standard error of T is asked
    for; only T-hat must not come from the trusted samples.

    Args:
        counts: How often samples without a trusted label have (noisy, predicted), int64 of shape ``(C, C)``, see
            :func:`~noisylightning.functional.count_pairs`.
        wrong: The same for those whose prediction is not their trusted label; drawn at random from all.
        right: The same for those whose prediction is their trusted label.
        transition: T, row-stochastic: a tensor, a file's path or a :class:`~noisylightning.transition.Transition`.
        tune: As in :func:`prediction_powered_mean`.

    Returns:
        A scalar estimate.

    Raises:
        TypeError: If the counts are not integers.
        ValueError: If shapes do not go together, there are fewer than two samples of either kind, or T is singular or
            depends on the sample.

    Example:
        >>> counts, T = torch.tensor([[370, 130], [130, 370]]), torch.tensor([[0.8, 0.2], [0.2, 0.8]])
        >>> wrong, right = torch.tensor([[1, 4], [4, 1]]), torch.tensor([[36, 9], [9, 36]])
        >>> powered = prediction_powered_accuracy(counts, wrong, right, T)
        >>> powered.value, powered.standard_error  # 90 of 100 alone: 0.03
        (tensor(0.9000, dtype=torch.float64), tensor(0.0277, dtype=torch.float64))
    """
    inverse = invert(transition)
    for some in (counts, wrong, right):
        check_counts(some, len(inverse))
    scores, counts, wrong, right = inverse.flatten(), *(some.cpu().flatten() for some in (counts, wrong, right))
    untrusted = _Moments.of(counts, scores, scores)
    both = torch.cat([wrong, right])
    is_right = torch.cat([torch.zeros_like(scores), torch.ones_like(scores)])
    return _powered(untrusted, _Moments.of(both, scores.repeat(2), is_right), tune)


class _Moments:
    """First and second moments of scores and of what they stand for."""

    def __init__(self, num: int, means: Tensor, covariance: Tensor) -> None:
        self.num = num
        self.means = means
        self.covariance = covariance

    @classmethod
    def of(cls, counts: Tensor, scores: Tensor, values: Tensor) -> _Moments:
        num = int(counts.sum())
        if num < 2:
            raise BadValue(
                f"prediction-powered inference needs at least 2 samples with a trusted label and 2 without, got {num}:"
                " give more of these."
            )
        pairs = torch.stack([scores, values])
        means = (pairs * counts).sum(dim=1) / num
        centred = pairs - means[:, None]
        return cls(num, means, (centred * counts) @ centred.T / (num - 1))


def _powered(untrusted: _Moments, trusted: _Moments, tune: bool) -> Estimate:
    factor = torch.ones((), dtype=torch.float64)
    if tune:
        num = untrusted.num + trusted.num
        pooled = (untrusted.num * untrusted.covariance[0, 0] + trusted.num * trusted.covariance[0, 0]) / num
        varies = pooled > 0
        slope = trusted.covariance[0, 1] / pooled.where(varies, 1.0)
        factor = (slope / (1 + trusted.num / untrusted.num)).where(varies, 0.0)
    value = trusted.means[1] + factor * (untrusted.means[0] - trusted.means[0])
    left = trusted.covariance[1, 1] - 2 * factor * trusted.covariance[0, 1] + factor.square() * trusted.covariance[0, 0]
    variance = factor.square() * untrusted.covariance[0, 0] / untrusted.num + left.clamp_min(0) / trusted.num
    return Estimate(value, variance.sqrt())
