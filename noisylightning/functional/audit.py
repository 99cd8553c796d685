"""Which labels are wrong, by a network's p(clean | x) and T; and how many, with an interval."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.posterior import clean_log_posterior
from noisylightning.functional.probabilities import check_noisy_labels, not_finite
from noisylightning.tensors import pick
from noisylightning.transition import Transition, as_transition, condition_number

_ITERATIONS = 1000  # of expectation maximisation, for a row of probabilities
_CONVERGED = 1e-10  # change of a row's probabilities in one of them
_MAX_CONDITION = 1e6  # beyond it the rounding of float32 probabilities is as large as they are


class LabelAudit(NamedTuple):
    """What network and T say of N labels.

    Attributes:
        wrong: Probability that the given label is wrong, float64, ``(N,)``.
        labels: The most probable clean label, int64, ``(N,)``.
        label_probs: Its probability, float64, ``(N,)``.
    """

    wrong: Tensor
    labels: Tensor
    label_probs: Tensor


class ExpectedErrors(NamedTuple):
    """How many labels are wrong, in all and for each pair of classes.

    Attributes:
        total: Expected number of wrong labels.
        low: Lower bound of its interval.
        high: Upper bound.
        pairs: Expected number of samples of class i that are labelled j, float64, ``(C, C)``; right where i = j.
        pairs_low: Lower bounds, ``(C, C)``.
        pairs_high: Upper bounds, ``(C, C)``.
    """

    total: float
    low: float
    high: float
    pairs: Tensor
    pairs_low: Tensor
    pairs_high: Tensor


def label_posterior(logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition) -> Tensor:
    """``p(clean = j | x, noisy = y) = p_j T[j, y] / (p T)_y`` in float64, checked.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``.
        noisy_labels: The given labels, integers of shape ``(N,)``.
        transition: T: a tensor ``(C, C)``, dense or sparse, or a :class:`~noisylightning.transition.Transition`, also
            one of these N samples (see :meth:`Transition.at`).

    Returns:
        Shape ``(N, C)``; rows sum to one.

    Raises:
        ValueError: If shapes do not go together, a score is NaN, a label is none, or impossible by T.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> label_posterior(torch.zeros(1, 2), torch.tensor([0]), T)
        tensor([[0.7273, 0.2727]], dtype=torch.float64)
    """
    transition = as_transition(transition)  # which checks it
    transition.check_logits(logits)
    check_noisy_labels(noisy_labels, len(logits), transition.num_classes)
    if not logits.amax(dim=1).isfinite().all():
        raise not_finite(~logits.amax(dim=1).isfinite())
    posterior = clean_log_posterior(logits.double(), noisy_labels, transition).exp()
    impossible = posterior.isnan().any(dim=1)
    if impossible.any():
        raise BadValue(
            f"A sample is labelled {int(noisy_labels[impossible][0])}, which no class that the network allows it is by"
            " T: take a T without zeros in that column."
        )
    return posterior


def audit_labels(logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition) -> LabelAudit:
    """Tell for each label how probably it is wrong, and the most probable clean label.

    ``p(label wrong | x, y) = 1 - p_y T[y, y] / (p T)_y``, Bayes' rule with the network's p(clean | x) as the prior; as
    a sum over the other classes, so that it is exact where it is tiny.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``, of a network trained with T in its loss.
        noisy_labels: The given labels, integers of shape ``(N,)``.
        transition: As in :func:`label_posterior`.

    Returns:
        Probabilities and labels; of equally probable labels the first.

    Raises:
        ValueError: As :func:`label_posterior` does.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> found = audit_labels(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 0]), T)
        >>> found.wrong, found.labels
        (tensor([0.9398, 0.2727], dtype=torch.float64), tensor([0, 0]))
    """
    return judge_labels(label_posterior(logits, noisy_labels, transition), noisy_labels)


def judge_labels(posterior: Tensor, noisy_labels: Tensor) -> LabelAudit:
    """:func:`audit_labels` by the probabilities of :func:`label_posterior`, ``(N, C)``, at hand."""
    wrong = posterior.scatter(1, noisy_labels[:, None], 0).sum(dim=1).clamp(max=1)  # but for rounding it is at most 1
    label_probs, labels = posterior.max(dim=1)
    return LabelAudit(wrong, labels, label_probs.clamp(max=1))


def error_sums(posterior: Tensor, noisy_labels: Tensor) -> Tensor:
    """Sum up over samples what :func:`expected_errors` needs; sums of batches and processes add up exactly.

    Args:
        posterior: Of :func:`label_posterior`, shape ``(N, C)``.
        noisy_labels: The given labels, shape ``(N,)``.

    Returns:
        int64 of shape ``(3, C, C)``, multiples of 2^-36 (:func:`~noisylightning.functional.exact_sums.to_fixed`): over
        the samples labelled j the sums of ``r_i``, ``r_i^2`` and ``r_i r_j``, r being the posterior.

    Example:
        >>> posterior = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
        >>> from_fixed(error_sums(posterior, torch.tensor([0, 0])))[0]
        tensor([[1.4000, 0.0000],
                [0.6000, 0.0000]], dtype=torch.float64)
    """
    num_classes = posterior.shape[1]
    sums = torch.zeros(3, num_classes, num_classes, dtype=torch.long, device=posterior.device)
    given = pick(posterior, noisy_labels)[:, None]
    for total, values in zip(sums, (posterior, posterior**2, posterior * given), strict=True):
        total.t().index_add_(0, noisy_labels, to_fixed(values))
    return sums


def expected_errors(
    sums: Tensor,
    transition: Tensor | None = None,
    standard_error: Tensor | None = None,
    level: float = 0.95,
) -> ExpectedErrors:
    r"""Say how many labels are wrong, in all and for each pair of classes, with intervals.

    The number of samples labelled j that are of class i is a sum of independent draws with probabilities
    :math:`r_i = p_i T_{ij} / (p T)_j` (a Poisson-binomial variable): its mean is :math:`\sum r_i`, its variance
    :math:`\sum r_i (1 - r_i)`. The errors of T-hat are added by the delta method,
    :math:`\partial r_k / \partial \log T_{ij} = r_i (\delta_{ik} - r_k)`: for the total as if each row of T-hat were
    counted (independent counts that are then divided by their sum); for a pair the entries of its column are
    independent, and classes other than the two count at the most that they can do.

    The interval is normal and ends where no number can be. It covers which labels happen to be wrong, given the
    network's p(clean | x), and the standard errors of T-hat, if given; not the network's own errors, nor noise that
    depends on more than the class. An entry of T-hat that is zero is taken as known.

    Args:
        sums: Of :func:`error_sums`, shape ``(3, C, C)``, of all samples.
        transition: T, shape ``(C, C)``, where there are standard errors.
        standard_error: That of each entry of T-hat, shape ``(C, C)``; None for a T that is known.
        level: Probability that the interval is to cover, in (0, 1).

    Returns:
        Expected numbers and bounds.

    Raises:
        ValueError: If the level is outside (0, 1), or T and its standard errors do not go together.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> posterior = label_posterior(torch.zeros(100, 2), torch.zeros(100, dtype=torch.long), T)
        >>> found = expected_errors(error_sums(posterior, torch.zeros(100, dtype=torch.long)))
        >>> round(found.total, 1), round(found.low, 1), round(found.high, 1)
        (27.3, 18.5, 36.0)
    """
    if not 0 < level < 1:
        raise BadValue(f"level must lie between 0 and 1, got {level}: 0.95 for a 95 % interval.")
    counts, squares, shared = from_fixed(sums).cpu()
    variance = counts - squares
    total = counts.sum() - counts.trace()
    total_variance = variance.trace()
    if standard_error is not None:
        T, error = _checked(transition, standard_error, len(counts))
        relative = torch.where(T > 0, error / T.where(T > 0, 1), 0)
        slope = shared - counts.diag().diag()  # of the total, by log T
        about_mean = torch.where(T > 0, slope / T.where(T > 0, 1), 0) - slope.sum(dim=1, keepdim=True)
        spread = error**2 / (1 - T).where(T < 1, 1)  # of counts, before they are divided by their sum
        total_variance = total_variance + (spread * about_mean**2).sum()
        others = (variance - shared).clamp(min=0).fill_diagonal_(0)
        own, given = variance * relative, shared * relative.diagonal()
        given.fill_diagonal_(0)
        on_diagonal = variance.diagonal() * relative.amax(dim=0)  # all other classes count at the most they can do
        third = (others * relative.amax(dim=0)).diagonal_scatter(on_diagonal)
        variance = variance + own**2 + given**2 + third**2
    z = NormalDist().inv_cdf(0.5 + level / 2)
    margin, most = z * variance.clamp(min=0).sqrt(), counts.sum(dim=0)
    total_margin = z * float(total_variance.clamp(min=0).sqrt())
    return ExpectedErrors(
        total=float(total),
        low=max(0.0, float(total) - total_margin),
        high=min(float(counts.sum()), float(total) + total_margin),
        pairs=counts,
        pairs_low=(counts - margin).clamp(min=0),
        pairs_high=torch.minimum(counts + margin, most),
    )


def _checked(transition: Tensor | None, standard_error: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    if transition is None:
        raise BadValue("Standard errors were given without the T that they are of: give the transition too.")
    found = []
    for name, value in (("transition", transition), ("standard_error", standard_error)):
        value = value.detach().to_dense().double().cpu() if value.layout != torch.strided else value.double().cpu()
        if value.shape != (num_classes, num_classes):
            raise BadValue(f"{name} must be of shape ({num_classes}, {num_classes}), got {tuple(value.shape)}.")
        found.append(value)
    if not bool((found[1].isfinite() & (found[1] >= 0)).all()):
        raise BadValue("standard_error must be finite numbers that are not negative: give that of each entry of T-hat.")
    return found[0], found[1]


def clean_log_probs(noisy_probs: Tensor, transition: Tensor | Transition) -> Tensor:
    r"""Turn p(noisy | x), of a network trained without T, into log p(clean | x).

    It is ``q T^-1`` where those are probabilities; elsewhere the p for which ``p T`` is nearest to q, in the sense of
    :math:`\sum_j q_j \log (p T)_j`, by expectation maximisation,
    :math:`p_i \leftarrow p_i \sum_j T_{ij} q_j / (p T)_j`.

    Args:
        noisy_probs: q, p(noisy | x), shape ``(N, C)``; of a network that was trained without these samples, since one
            that knows their labels by heart says nothing else.
        transition: T, ``(C, C)``.

    Returns:
        float64, shape ``(N, C)``.

    Raises:
        ValueError: If T is singular, or all but: of a condition number past 1e6.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> clean_log_probs(torch.tensor([[0.8, 0.2], [0.55, 0.45]]), T).exp().round(decimals=4)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    T = as_transition(transition).to_dense().detach().double()
    condition = float(condition_number(T))
    if not condition <= _MAX_CONDITION:
        raise BadValue(
            f"T has condition number {condition:.3g}, so that p(noisy | x) does not tell which class a sample is of:"
            " give p(clean | x) of a network that was trained with this T in its loss."
        )
    q = noisy_probs.double()
    q = q / q.sum(dim=1, keepdim=True)
    found = torch.linalg.solve(T.t(), q.t()).t()
    outside = (found < 0).any(dim=1).nonzero().flatten()
    p, q = found[outside].clamp(min=1e-3), q[outside]
    p = p / p.sum(dim=1, keepdim=True)
    for _ in range(_ITERATIONS):
        if not len(outside):
            break
        noisy = p @ T
        better = p * ((q / noisy.where(noisy > 0, 1)) @ T.t())
        better = better / better.sum(dim=1, keepdim=True)
        moving = (better - p).abs().amax(dim=1) > _CONVERGED
        found[outside] = p = better
        outside, p, q = outside[moving], p[moving], q[moving]
    return found.log()
