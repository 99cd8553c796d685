r"""Base losses as functions: from log-probabilities, or raw scores, to the loss of every label.

What a function takes is the name of its first argument:

- ``log_p``, any shape: a loss of the label's log-probability alone, elementwise. Given ``log_softmax(logits)`` it is
  the whole vector, given the labels' own entries it is just those.
- ``log_p``, shape ``(N, C, d1, ...)``: log-probabilities over dimension 1, for losses that look at all classes.
- ``logits``, shape ``(N, C, d1, ...)``: scores that are not put through a softmax.

:func:`label_loss` makes a criterion of any of them. The modules in :mod:`noisylightning.losses`, one for each function
and of the same name, say where the loss comes from and what is known about it.

Example:
    >>> logits, target = torch.zeros(2, 4), torch.tensor([0, 3])
    >>> label_loss(mean_absolute_error(logits.log_softmax(1)), target)
    tensor(1.5000)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.checks import check_inputs, mask_ignored
from noisylightning.functional.reduction import Reduction, reduce_values, weigh
from noisylightning.tensors import expectation, pick


def label_loss(
    losses: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of the given labels out of the losses of all labels: :func:`torch.nn.functional.nll_loss` for any loss.

    Args:
        losses: The loss of every label, shape ``(N, C, d1, ...)``.
        target: Class indices ``(N, d1, ...)``, or probabilities ``q``, ``(N, C, d1, ...)``, for ``sum_j q_j l_j``.
        weight: One factor per class, shape ``(C,)``; the mean over class indices divides by the sum of the factors.
        ignore_index: Class indices with this value count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``.

    Raises:
        TypeError: A target that is neither an int64 index nor a probability.
        ValueError: Shapes that do not go together.

    Example:
        >>> losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> label_loss(losses, torch.tensor([1, 0]), reduction="none")
        tensor([2., 3.])
        >>> label_loss(losses, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), reduction="none")
        tensor([1.5000, 3.0000])
    """
    check_inputs(losses, target)
    labels, mask = mask_ignored(target, losses.shape[1], ignore_index)
    soft = labels.is_floating_point()
    values = expectation(losses, weigh(labels, weight)) if soft else pick(losses, labels)
    return reduce_values(values, labels, mask=mask, weight=weight, reduction=reduction)


def check_interval(name: str, value: float, interval: str, meaning: str) -> None:
    """Raise unless a hyper-parameter lies in the range in which the loss is what its docstring says.

    Args:
        name: The hyper-parameter.
        value: What it was set to.
        interval: The range as it is written, ``"[0, 1]"`` or ``"(0, inf)"``: a square bracket includes the end.
        meaning: What the hyper-parameter is, for the message.

    Raises:
        ValueError: If the value is outside (NaN always is).

    Example:
        >>> check_interval("beta", 1.5, "[0, 1]", "the share of the given label")
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: beta must lie in [0, 1], got 1.5: it is the share of the given label.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low or (interval[0] == "[" and value == low)
    below = value < high or (interval[-1] == "]" and value == high)
    if not (above and below):
        raise BadValue(f"{name} must lie in {interval}, got {value}: it is {meaning}.")


def mean_absolute_error(log_p: Tensor) -> Tensor:
    """Mean absolute error ``2 (1 - p_j)``, elementwise: the L1 distance of p to the label's corner of the simplex.

    Args:
        log_p: Log-probabilities, any shape.

    Returns:
        Losses in [0, 2], same shape.

    Example:
        >>> mean_absolute_error(torch.tensor([0.25, 1.0]).log())
        tensor([1.5000, -0.0000])
    """
    return -2 * torch.expm1(log_p)


def reverse_cross_entropy(log_p: Tensor, log_zero: float = -4.0) -> Tensor:
    """Reverse cross-entropy ``-A (1 - p_j)``, elementwise, with ``A`` standing for ``log 0``.

    Args:
        log_p: Log-probabilities, any shape.
        log_zero: ``A``, negative.

    Returns:
        Losses in ``[0, -A]``, same shape.

    Raises:
        ValueError: If ``log_zero`` is not negative and finite.

    Example:
        >>> reverse_cross_entropy(torch.tensor([0.25]).log())
        tensor([3.])
    """
    check_interval("log_zero", log_zero, "(-inf, 0)", "the number that stands for log 0")
    return log_zero * torch.expm1(log_p)


def symmetric_cross_entropy(log_p: Tensor, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0) -> Tensor:
    """Symmetric cross-entropy ``-alpha log p_j - beta A (1 - p_j)``, elementwise.

    Args:
        log_p: Log-probabilities, any shape.
        alpha: Weight of cross-entropy.
        beta: Weight of reverse cross-entropy.
        log_zero: ``A``, negative.

    Returns:
        Losses, same shape.

    Raises:
        ValueError: If a weight is negative or ``log_zero`` is not negative and finite.

    Example:
        >>> symmetric_cross_entropy(torch.tensor([0.25]).log(), alpha=0.0)
        tensor([3.])
    """
    check_interval("alpha", alpha, "[0, inf)", "the weight of cross-entropy")
    check_interval("beta", beta, "[0, inf)", "the weight of reverse cross-entropy")
    return _share(alpha, -log_p) + beta * reverse_cross_entropy(log_p, log_zero)


def generalized_cross_entropy(log_p: Tensor, q: float = 0.7) -> Tensor:
    """Generalized cross-entropy ``(1 - p_j^q) / q``, elementwise.

    Args:
        log_p: Log-probabilities, any shape.
        q: From cross-entropy (the limit 0) to half the mean absolute error (1).

    Returns:
        Losses in ``[0, 1/q]``, same shape.

    Raises:
        ValueError: If ``q`` is outside (0, 1].

    Example:
        >>> generalized_cross_entropy(torch.tensor([0.25]).log(), q=0.5)
        tensor([1.])
    """
    check_interval("q", q, "(0, 1]", "the way from cross-entropy at 0, which is CrossEntropy, to absolute error at 1")
    return torch.expm1(q * log_p) / -q


def truncated_generalized_cross_entropy(log_p: Tensor, q: float = 0.7, k: float = 0.5) -> Tensor:
    """Truncated generalized cross-entropy ``(1 - max(p_j, k)^q) / q``, elementwise.

    Args:
        log_p: Log-probabilities, any shape.
        q: As in :func:`generalized_cross_entropy`.
        k: Labels less probable than this have a constant loss, hence no gradient.

    Returns:
        Losses in ``[0, (1 - k^q) / q]``, same shape.

    Raises:
        ValueError: If ``q`` is outside (0, 1] or ``k`` outside (0, 1).

    Example:
        >>> truncated_generalized_cross_entropy(torch.tensor([0.25, 0.5, 1.0]).log(), q=1.0)
        tensor([0.5000, 0.5000, -0.0000])
    """
    check_interval("k", k, "(0, 1)", "the probability below which a label has no gradient")
    return generalized_cross_entropy(log_p.clamp_min(math.log(k)), q)


def focal_loss(log_p: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss ``-(1 - p_j)^gamma log p_j``, elementwise.

    Args:
        log_p: Log-probabilities, any shape.
        gamma: How much less a probable label counts; cross-entropy at 0.

    Returns:
        Losses, same shape.

    Raises:
        ValueError: If ``gamma`` is negative or not finite.

    Example:
        >>> focal_loss(torch.tensor([0.5]).log(), gamma=2.0)
        tensor([0.1733])
    """
    check_interval("gamma", gamma, "[0, inf)", "the exponent of 1 - p")
    # Both floors replace 0 times infinity in the slope by 0: at p = 1 for gamma < 1, and at p = 0.
    miss = -torch.expm1(log_p.clamp_min(-1e4))
    return -log_p * miss.clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma


def square_loss(log_p: Tensor) -> Tensor:
    """Square loss (Brier score) ``|p - e_j|^2 = 1 - 2 p_j + sum_k p_k^2``.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``.

    Returns:
        Losses in [0, 2], same shape.

    Example:
        >>> square_loss(torch.tensor([[0.5, 0.5]]).log())
        tensor([[0.5000, 0.5000]])
    """
    p = log_p.exp()
    return 1 - 2 * p + p.square().sum(1, keepdim=True)


def savage_loss(log_p: Tensor) -> Tensor:
    """Savage loss ``[(1 + e^(2 p_j))^-2 + (C - 1)/4] / C``: the mean over the outputs, whose targets are 0 or 1.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``.

    Returns:
        Losses in (0, 1/4], same shape.

    Example:
        >>> savage_loss(torch.tensor([[0.0, 1.0]]).log())
        tensor([[0.2500, 0.1321]])
    """
    classes = log_p.shape[1]
    return (torch.sigmoid(-2 * log_p.exp()).square() + (classes - 1) / 4) / classes


def soft_bootstrap(log_p: Tensor, beta: float = 0.95) -> Tensor:
    """Soft bootstrap ``-sum_k (beta 1[k = j] + (1 - beta) p_k) log p_k``, gradient through both p.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``.
        beta: The share of the given label in the target; the prediction has the rest.

    Returns:
        Losses, same shape.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    Example:
        >>> soft_bootstrap(torch.tensor([[0.5, 0.5]]).log())
        tensor([[0.6931, 0.6931]])
    """
    check_interval("beta", beta, "[0, 1]", "the share of the given label in the target")
    # 0 log 0 = 0, in value and in gradient
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0)).sum(1, keepdim=True)
    return _share(beta, -log_p) + (1 - beta) * entropy


def hard_bootstrap(log_p: Tensor, beta: float = 0.8) -> Tensor:
    """Hard bootstrap ``-beta log p_j - (1 - beta) max_k log p_k``: the predicted class is the rest of the target.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``.
        beta: The share of the given label in the target.

    Returns:
        Losses, same shape.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    Example:
        >>> hard_bootstrap(torch.tensor([[0.25, 0.75]]).log())
        tensor([[1.1666, 0.2877]])
    """
    check_interval("beta", beta, "[0, 1]", "the share of the given label in the target")
    return _share(beta, -log_p) - (1 - beta) * log_p.max(1, keepdim=True).values


def normalized_cross_entropy(log_p: Tensor) -> Tensor:
    """Normalized cross-entropy ``log p_j / sum_k log p_k``.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``, two classes or more.

    Returns:
        Losses in [0, 1], same shape.

    Example:
        >>> normalized_cross_entropy(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log())
        tensor([[0.1111, 0.2222, 0.3333, 0.3333]])
    """
    # far below the log of any probability that softmax gives, and its sum over all classes is still a float32
    log_p = log_p.clamp_min(-1e30)
    return log_p / log_p.sum(1, keepdim=True)


def label_smoothing(log_p: Tensor, rate: float = 0.1) -> Tensor:
    """Label smoothing ``-(1 - r) log p_j - r/C sum_k log p_k``; negative label smoothing for ``r < 0``.

    Args:
        log_p: Log-probabilities, shape ``(N, C, d1, ...)``.
        rate: ``r``, the share of the uniform distribution in the target; negative to sharpen the label.

    Returns:
        Losses, same shape; for a negative rate they are unbounded below.

    Raises:
        ValueError: If ``rate`` is above 1 or not finite.

    Example:
        >>> label_smoothing(torch.tensor([[0.25, 0.75]]).log(), rate=-1.0)
        tensor([[ 1.9356, -0.2616]])
    """
    check_interval("rate", rate, "(-inf, 1]", "the share of the uniform distribution in the target")
    if rate < 0:
        log_p = log_p.clamp_min(-1e30)  # the two terms would be infinities of opposite signs
    return _share(1 - rate, -log_p) + _share(rate, -log_p.mean(1, keepdim=True))


def early_learning_regularization(log_p: Tensor, ema: Tensor, strength: float = 3.0, floor: float = 1e-4) -> Tensor:
    """Early-learning regularization ``-log p_j + strength * log(1 - sum_k p_k t_k)``.

    Args:
        log_p: Log-probabilities, shape ``(N, C)``.
        ema: ``t``, each sample's moving average of its earlier p, shape ``(N, C)``; no gradient reaches it.
        strength: Weight of the regularizer.
        floor: The regularizer sees p clipped to ``[floor, 1 - floor]``; at 0 it may reach minus infinity.

    Returns:
        Losses, shape ``(N, C)``, unbounded below only for ``floor = 0``.

    Raises:
        ValueError: If ``strength`` is negative or not finite, or ``floor`` outside [0, 0.5).

    Example:
        >>> early_learning_regularization(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.0]]))
        tensor([[-0.1699, -0.1699]])
    """
    check_interval("strength", strength, "[0, inf)", "the weight of the regularizer")
    check_interval("floor", floor, "[0, 0.5)", "the bound to which the regularizer's p is clipped")
    p = log_p.exp().clamp(floor, 1 - floor)
    return -log_p + strength * torch.log1p(-(p * ema.detach()).sum(1, keepdim=True))


def unhinged_loss(logits: Tensor) -> Tensor:
    """Unhinged loss ``1 - z_j / C``: the mean of ``1 - y_k z_k`` over the outputs, with targets y of 0 and 1.

    Args:
        logits: Bounded scores z, shape ``(N, C, d1, ...)``.

    Returns:
        Losses, same shape, unbounded below.

    Example:
        >>> unhinged_loss(torch.tensor([[1.0, -1.0]]))
        tensor([[0.5000, 1.5000]])
    """
    return 1 - _widen(logits) / logits.shape[1]


def sigmoid_loss(logits: Tensor) -> Tensor:
    """Sigmoid loss ``[s(-z_j) + (C - 1)/2] / C``: the mean of ``s(-y_k z_k)`` over the outputs, targets 0 or 1.

    Args:
        logits: Bounded scores z, shape ``(N, C, d1, ...)``.

    Returns:
        Losses in (0, 1), same shape.

    Example:
        >>> sigmoid_loss(torch.tensor([[0.0, 100.0]]))
        tensor([[0.5000, 0.2500]])
    """
    classes = logits.shape[1]
    return (torch.sigmoid(-_widen(logits)) + (classes - 1) / 2) / classes


def ramp_loss(logits: Tensor) -> Tensor:
    """Ramp loss ``[min(1, max(0, 1 - z_j)) + C - 1] / C``, the mean over the outputs, whose targets are 0 or 1.

    Args:
        logits: Bounded scores z, shape ``(N, C, d1, ...)``.

    Returns:
        Losses in [0, 1], same shape.

    Example:
        >>> ramp_loss(torch.tensor([[-1.0, 0.5]]))
        tensor([[1.0000, 0.7500]])
    """
    classes = logits.shape[1]
    return ((1 - _widen(logits)).clamp(0, 1) + classes - 1) / classes


def _share(share: float, losses: Tensor) -> Tensor:
    """A part of a sum, where a share of zero leaves nothing even of an infinite loss."""
    return share * losses if share != 0 else torch.zeros_like(losses)


def _widen(logits: Tensor) -> Tensor:
    """Half-precision scores as float32, others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
