"""Forward correction: compare the *noisy* posterior p T with the noisy label."""

from __future__ import annotations

import math
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.checks import check_arguments, check_inputs, mask_ignored
from noisylightning.functional.reduction import Reduction, reduce_values, weigh
from noisylightning.tensors import class_last, expectation
from noisylightning.transition import Transition, as_transition


def noisy_log_likelihood(
    logits: Tensor,
    target: Tensor,
    transition: Tensor | Transition | str | Path,
    *,
    ignore_index: int = -100,
    floor: float = 0.0,
) -> Tensor:
    """``log (p T)_y``: what the network, seen through T, thinks of each noisy label.

    Looks at one column of T per sample, and is exact where ``softmax(logits) @ T`` underflows.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``; ``p`` is their softmax.
        target: Class indices, shape ``(N, d1, ...)``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``, a tensor ``(C, C)``, a
            file's path or a :class:`~noisylightning.transition.Transition`. A tensor is read fastest when its columns
            lie contiguous in memory: ``T.t().contiguous().t()``.
        ignore_index: Entries with this index get the likelihood of class 0.
        floor: Likelihoods below it count as it, without gradient. Where ``(p T)_y`` is zero, which is where column
            ``y`` of T is, the default 0 gives minus infinity.

    Returns:
        Shape ``(N, d1, ...)``, at least float32.

    Example:
        >>> import torch
        >>> transition = torch.tensor([[0.8, 0.2], [0.0, 1.0]])
        >>> noisy_log_likelihood(torch.zeros(1, 2), torch.tensor([0]), transition).exp()
        tensor([0.4000])
        >>> noisy_log_likelihood(torch.tensor([[-1e4, 0.0]]), torch.tensor([0]), transition)
        tensor([-10000.2227])
    """
    transition = as_transition(transition, copy=False)
    check_inputs(logits, target)
    transition.check_logits(logits)
    labels, _ = mask_ignored(target, logits.shape[1], ignore_index)
    return label_log_likelihood(logits, labels, transition, floor)


def label_log_likelihood(logits: Tensor, labels: Tensor, transition: Transition, floor: float = 0.0) -> Tensor:
    """:func:`noisy_log_likelihood` of labels that have been checked, none of them ignored."""
    if logits.ndim == 2:
        return _floored(transition.log_likelihood(logits, labels), floor)
    return _floored(transition.log_likelihood(class_last(logits), labels.flatten()).view(labels.shape), floor)


def masked_forward_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    transition: Transition,
    weight: Tensor | None,
    reduction: Reduction,
    floor: float,
) -> Tensor:
    """:func:`forward_cross_entropy` of class indices that have been checked, and those to be ignored masked."""
    if mask is None and weight is None and reduction == "mean" and floor == 0:
        rows, flat = (logits, labels) if logits.ndim == 2 else (class_last(logits), labels.flatten())
        return transition.mean_cross_entropy(rows, flat)
    values = -label_log_likelihood(logits, labels, transition, floor)
    return reduce_values(values, labels, mask=mask, weight=weight, reduction=reduction)


def noisy_log_posterior(logits: Tensor, transition: Tensor | Transition | str | Path, *, floor: float = 0.0) -> Tensor:
    """``log p T``: what the network says about every noisy label, exact where ``softmax(logits) @ T`` underflows.

    Costs a product with the whole T; the loss of a given label needs :func:`noisy_log_likelihood` only.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, a file's path or
            a :class:`~noisylightning.transition.Transition`.
        floor: Probabilities below it count as it, without gradient; at 0, an impossible label has minus infinity.

    Returns:
        Shape ``(N, C, d1, ...)``, at least float32.

    Example:
        >>> import torch
        >>> noisy_log_posterior(torch.zeros(1, 2), torch.tensor([[0.8, 0.2], [0.0, 1.0]])).exp()
        tensor([[0.4000, 0.6000]])
    """
    value = as_transition(transition, copy=False).log_posterior(class_last(logits))
    if logits.ndim > 2:
        value = value.unflatten(0, logits.shape[:1] + logits.shape[2:]).movedim(-1, 1)
    return _floored(value, floor)


def forward_cross_entropy(
    logits: Tensor,
    target: Tensor,
    transition: Tensor | Transition | str | Path,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    floor: float = 0.0,
) -> Tensor:
    r"""Forward-corrected cross-entropy, ``-log (p T)_y``.

    Patrini et al. (2017), Theorem 2: minimised, under the noisy distribution, by the *clean* posterior. With T the
    identity it is :func:`torch.nn.functional.cross_entropy`, whose conventions it keeps. For class indices without
    label smoothing it reads one column of T per sample; else it needs all of ``p T``.

    Args:
        logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``.
        target: Noisy labels: class indices, shape ``()`` or ``(N, d1, ...)``, or probabilities, shaped as ``logits``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``, a tensor ``(C, C)``, a
            file's path or a :class:`~noisylightning.transition.Transition`. A tensor is read fastest when its columns
            lie contiguous in memory: ``T.t().contiguous().t()``.
        weight: One factor per (noisy) class, shape ``(C,)``.
        ignore_index: Class indices with this value count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: In [0, 1]: how much of the noisy label is spread over all classes.
        floor: ``(p T)_y`` below it counts as it, without gradient. Where column ``y`` of T is zero, so that T calls
            the label impossible, the default 0 gives an infinite loss.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``; at least float32.

    Raises:
        TypeError: A dtype that is neither a score, an index nor a probability.
        ValueError: Shapes or devices that do not go together, a label out of range (on an accelerator the lookup
            itself fails), or a soft target not summing to one.

    Example:
        >>> import torch
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
        >>> forward_cross_entropy(logits, torch.tensor([0, 1]), transition)
        tensor(0.5990)
    """
    transition = as_transition(transition, copy=False)
    check_arguments(logits, target, transition, weight, label_smoothing)
    if logits.ndim == 1:
        loss = forward_cross_entropy(
            logits[None],
            target[None],
            transition,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            floor=floor,
        )
        return loss.reshape(())
    labels, mask = mask_ignored(target, logits.shape[1], ignore_index)
    if target.is_floating_point():
        smoothed = (1 - label_smoothing) * target + label_smoothing / target.shape[1]
        values = expectation(-noisy_log_posterior(logits, transition, floor=floor), weigh(smoothed, weight))
    elif label_smoothing > 0:
        return F.cross_entropy(
            noisy_log_posterior(logits, transition, floor=floor),
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    else:
        return masked_forward_cross_entropy(logits, labels, mask, transition, weight, reduction, floor)
    return reduce_values(values, labels, reduction=reduction)


def _floored(log_q: Tensor, floor: float) -> Tensor:
    if not 0 <= floor < 1:
        raise BadValue(f"floor must be a probability in [0, 1), got {floor}.")
    return log_q.clamp(min=math.log(floor)) if floor > 0 else log_q
