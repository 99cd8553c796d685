"""T from a network that was trained with a T: one step of expectation maximisation."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.posterior import clean_log_posterior
from noisylightning.functional.probabilities import check_noisy_labels, not_finite
from noisylightning.transition import Transition, as_transition

_ROWS = 2**16  # samples at a time
_LEAST = 1e-6  # samples that a row is made of


def expected_counts(
    logits: Tensor,
    noisy_labels: Tensor,
    transition: Tensor | Transition,
    index: Tensor | None = None,
    replicates: int = 0,
) -> Tensor:
    r"""Count how often class i is labelled j, each sample counting for every class as probable as it is.

    The expectation step: :math:`\sum_{x: y = j} r_i(x)` with :math:`r_i(x) = p_i(x) T_{iy} / (p(x) T)_y`. The sum is
    exact, so it is the same in any order.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``, of a network trained with ``transition``; best of one
            that was trained without these samples, so that it does not know their labels by heart.
        noisy_labels: Their labels, integers of shape ``(N,)``.
        transition: T, ``(C, C)``.
        index: Places of the samples in their data set, shape ``(N,)``: for replicates.
        replicates: Number of bootstrap replicates B.

    Returns:
        Counts, float64 of shape ``(B + 1, C, C)``; first those of the sample itself.

    Raises:
        ValueError: If shapes do not go together, a score is NaN, or a label is none, or impossible by T.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> expected_counts(torch.zeros(2, 2), torch.tensor([0, 1]), T)[0]
        tensor([[0.7273, 0.2222],
                [0.2727, 0.7778]], dtype=torch.float64)
    """
    transition = as_transition(transition, copy=False)
    num_classes = transition.num_classes
    check_noisy_labels(noisy_labels, len(logits), num_classes)
    places = torch.arange(len(logits), device=logits.device) if index is None else index
    counts = torch.zeros(replicates + 1, num_classes, num_classes, dtype=torch.long, device=logits.device)
    for rows, labels, part in zip(logits.split(_ROWS), noisy_labels.split(_ROWS), places.split(_ROWS), strict=True):
        if not rows.amax(dim=1).isfinite().all():
            raise not_finite(~rows.amax(dim=1).isfinite())
        posterior = clean_log_posterior(rows.double(), labels, transition).exp()
        impossible = posterior.isnan().any(dim=1)
        if impossible.any():
            raise BadValue(
                f"A sample is labelled {int(labels[impossible][0])}, which no class that the network allows it is by T:"
                " start from a T without zeros in that column."
            )
        fixed = to_fixed(posterior)
        weights = bootstrap_weights(part, replicates)
        for replicate in range(replicates + 1):
            counts[replicate].t().index_add_(0, labels, fixed * weights[:, replicate, None])
    return from_fixed(counts)


def maximize(counts: Tensor) -> Tensor:
    r"""Turn expected counts into T: :math:`T_{ij}` is the share of j among the labels of class i.

    The maximisation step.

    Args:
        counts: Of :func:`expected_counts`, shape ``(..., C, C)``.

    Returns:
        T-hat, same shape, float64.

    Raises:
        ValueError: If a class has no sample.

    Example:
        >>> maximize(torch.tensor([[3.0, 1.0], [2.0, 2.0]]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    wide = counts.double()
    totals = wide.sum(dim=-1, keepdim=True)
    without = (totals < _LEAST).nonzero()
    if len(without):
        raise BadValue(
            f"The network holds no sample for one of class {int(without[0, -2])}: train it for longer, or start from"
            " another T."
        )
    return wide / totals


def log_likelihood(logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition) -> Tensor:
    """``log (p T)_y`` of each sample in float64, shape ``(N,)``: how well network and T foretell its label.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``.
        noisy_labels: Labels, integers of shape ``(N,)``.
        transition: T, ``(C, C)``.

    Example:
        >>> log_likelihood(torch.zeros(1, 2), torch.tensor([0]), torch.eye(2)).exp()
        tensor([0.5000], dtype=torch.float64)
    """
    transition = as_transition(transition, copy=False)
    parts = zip(logits.split(_ROWS), noisy_labels.split(_ROWS), strict=True)
    return torch.cat([transition.log_likelihood(rows.double(), labels) for rows, labels in parts])
