"""Dual-T, the estimate of T in two factors (Yao et al., NeurIPS 2020)."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.anchor import Quantile, anchor_transition


def dual_transition(probs: Tensor, labels: Tensor, *, quantile: Quantile = "auto") -> Tensor:
    r"""Estimate T as the product of two matrices, of which one is counted.

    :math:`\hat T = T^\clubsuit T^\spadesuit`: the first says which label the network predicts for a clean class, by
    the anchor estimate; the second which labels the samples of a predicted one carry (Yao et al., NeurIPS 2020, eqs. 3
    and 4). Where the anchor estimate suffers from posteriors that are off, the counts do not. With exact posteriors of
    separate classes both factors are T, so that T-hat tends to their product, not to T.

    Args:
        probs: p(noisy | x), shape ``(N, C)``, rows sum to one.
        labels: Noisy labels, integers of shape ``(N,)``.
        quantile: Of the anchor estimate, see :func:`~noisylightning.functional.anchor.anchor_transition`.

    Returns:
        T-hat, ``(C, C)``, rows sum to one.

    Raises:
        TypeError: If the probabilities are not floating point or the labels not integers.
        ValueError: As for the anchor estimate; or if a class is predicted for no sample.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.0, 1.0]])
        >>> dual_transition(probs, torch.tensor([0, 1, 1, 1]), quantile=None)
        tensor([[0.4000, 0.6000],
                [0.0000, 1.0000]])
    """
    club = anchor_transition(probs, labels, quantile=quantile)
    weights = torch.ones(len(labels), 1, dtype=torch.long, device=labels.device)
    return dual_product(club, predicted_counts(probs, labels, weights)[0])


def predicted_counts(probs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Count the samples by the label that is predicted, the most probable, and the noisy label.

    Args:
        probs: p(noisy | x), shape ``(N, C)``; of equally probable labels the first is predicted.
        labels: Noisy labels, shape ``(N,)``.
        weights: How often each sample counts, integers of shape ``(N, B)``.

    Returns:
        int64 of shape ``(B, C, C)``: row is the prediction, column the label.
    """
    size = probs.shape[1]
    pairs = probs.argmax(dim=1) * size + labels
    counts = weights.new_zeros(size * size, weights.shape[1]).index_add(0, pairs, weights)
    return counts.t().reshape(-1, size, size)


def dual_product(club: Tensor, counts: Tensor) -> Tensor:
    """T-hat from the anchor estimate and what :func:`predicted_counts` gives, both ``(..., C, C)``.

    Raises:
        ValueError: If a class is predicted for no sample.
    """
    predicted = counts.sum(dim=-1, keepdim=True)
    never = (predicted == 0).nonzero()
    if len(never):
        raise BadValue(
            f"T cannot be estimated: class {int(never[0, -2])} is predicted for no sample, so nothing says which labels"
            " its samples carry; train for longer, or use AnchorEstimator."
        )
    return (club.double() @ (counts / predicted.double())).to(club.dtype)
