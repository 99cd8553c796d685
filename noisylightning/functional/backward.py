"""Backward correction: a combination of losses whose expectation over the noise is the clean loss."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisylightning.functional.checks import check_arguments, mask_ignored
from noisylightning.functional.reduction import Reduction, reduce_values, weigh
from noisylightning.tensors import class_last, expectation, log_softmax
from noisylightning.transition import Transition, as_transition


def inverse_rows(
    labels: Tensor, transition: Tensor | Transition | str | Path, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weights of backward correction: row ``y`` of ``T^-1``, or ``q T^-1`` for a soft label ``q``.

    Args:
        labels: Class indices ``(N, d1, ...)``, none of them ignored, or probabilities ``(N, C, d1, ...)``.
        transition: T, row-stochastic: a tensor ``(C, C)``, which is inverted at every call, a file's path or a
            :class:`~noisylightning.transition.Transition`.
        dtype: Of the weights.

    Returns:
        Shape ``(N, C, d1, ...)``: sums to one over the classes, with negative entries.

    Example:
        >>> inverse_rows(torch.tensor([0]), torch.tensor([[0.8, 0.2], [0.0, 1.0]]))
        tensor([[ 1.2500, -0.2500]])
    """
    soft = labels.is_floating_point()
    rows = as_transition(transition, copy=False).inverse_rows(class_last(labels) if soft else labels.flatten(), dtype)
    shape = labels.shape[:1] + labels.shape[2:] if soft else labels.shape
    return rows if len(shape) == 1 else rows.unflatten(0, shape).movedim(-1, 1)


def backward_cross_entropy(
    logits: Tensor,
    target: Tensor,
    transition: Tensor | Transition | str | Path,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Backward-corrected cross-entropy, ``-sum_k (T^-1)[y, k] log p_k``.

    Patrini et al. (2017), Theorem 1: unbiased, its expectation over the noisy label is the clean loss, since
    ``sum_j T[i, j] (T^-1 l)_j = l_i``. It has negative values without bound. With T the identity it is
    :func:`torch.nn.functional.cross_entropy`, whose conventions it keeps. A tensor is inverted at every call; a
    :class:`~noisylightning.corrections.BackwardCorrection` keeps the inverse.

    Args:
        logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``.
        target: Noisy labels: class indices, shape ``()`` or ``(N, d1, ...)``, or probabilities, shaped as ``logits``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, a file's path or
            a :class:`~noisylightning.transition.Transition`.
        weight: One factor per clean class, shape ``(C,)``: the loss that is corrected is ``w_k l_k``, so that
            its sum is unbiased too. The mean divides by the sum of the noisy labels' weights.
        ignore_index: Class indices with this value count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: In [0, 1]: how much of the noisy label is spread over all classes.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``; at least float32.

    Raises:
        TypeError: A dtype that is neither a score, an index nor a probability.
        ValueError: Shapes or devices that do not go together, a label out of range (on an accelerator the lookup
            itself fails), a soft target not summing to one, or a singular T.

    Example:
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
        >>> backward_cross_entropy(logits, torch.tensor([0, 1]), transition)
        tensor(0.0613)
    """
    transition = as_transition(transition, copy=False)
    check_arguments(logits, target, transition, weight, label_smoothing)
    if logits.ndim == 1:
        loss = backward_cross_entropy(
            logits[None],
            target[None],
            transition,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        return loss.reshape(())
    labels, mask = mask_ignored(target, logits.shape[1], ignore_index)
    if not target.is_floating_point() and label_smoothing == 0:
        return masked_backward_cross_entropy(logits, labels, mask, transition, weight, reduction)
    log_p = log_softmax(logits)
    weights = inverse_rows(labels, transition, log_p.dtype)
    if label_smoothing > 0:
        uniform = torch.full_like(weights[:1], 1 / weights.shape[1])
        weights = (1 - label_smoothing) * weights + label_smoothing * inverse_rows(uniform, transition, log_p.dtype)
    values = expectation(-log_p, weigh(weights, weight))
    return reduce_values(values, labels, mask=mask, weight=weight, reduction=reduction, weighted=True)


def masked_backward_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    transition: Transition,
    weight: Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """:func:`backward_cross_entropy` of class indices that have been checked, and those to be ignored masked."""
    if weight is None:
        rows, flat = (logits, labels) if logits.ndim == 2 else (class_last(logits), labels.flatten())
        if mask is None and reduction == "mean":
            return transition.mean_unbiased_cross_entropy(rows, flat)
        values = -transition.unbiased_log_likelihood(rows, flat).view(labels.shape)
    else:
        log_p = log_softmax(logits)
        values = expectation(-log_p, weigh(inverse_rows(labels, transition, log_p.dtype), weight))
    return reduce_values(values, labels, mask=mask, weight=weight, reduction=reduction, weighted=True)
