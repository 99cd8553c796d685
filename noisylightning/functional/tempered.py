"""Softmax and logarithm with a temperature, and the bi-tempered loss built of the two."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.functional.losses import check_interval, generalized_cross_entropy
from noisylightning.tensors import log_softmax, values_readable


def log_tempered_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Logarithm of the tempered softmax ``p_k = exp_t(z_k - lambda)``, with ``lambda`` such that p sums to one.

    ``exp_t(x) = (1 + (1 - t) x)^(1/(1 - t))``, which is exp at ``t = 1`` and has a heavier tail above (Amid et al.
    2019, NeurIPS). With ``v = (t - 1)(lambda - max z)`` and ``d_k = (t - 1)(max z - z_k)`` this is
    ``p_k = (1 + v + d_k)^(-1/(t - 1))``. ``(sum_k p_k)^(1 - t)`` is concave in ``v`` (a power mean of affine functions)
    and linear if all scores are equal, so Newton's method on it rises to the solution without overshooting, in about
    ten steps for any scores.

    Args:
        logits: Scores z, shape ``(N, C, d1, ...)``.
        temperature: ``t``, at least 1.

    Returns:
        Log-probabilities, same shape, in float32 at least.

    Raises:
        ValueError: If the temperature is below 1 or not finite.

    Example:
        >>> log_tempered_softmax(torch.tensor([[4.0, 0.0]]), temperature=2.0).exp()
        tensor([[0.8090, 0.1910]])
    """
    check_interval("temperature", temperature, "[1, inf)", "how heavy the tail of the softmax is")
    if temperature == 1:
        return log_softmax(logits)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    t = temperature
    distance = (t - 1) * (logits.amax(1, keepdim=True) - logits)
    v = torch.zeros_like(distance[:, :1])
    with torch.no_grad():
        for _ in range(10):
            step = _newton_step(v, distance, t)
            v = v + step
            if v.device.type == "cpu" and values_readable(v) and bool((step <= 1e-5 * (1 + v)).all()):
                break  # mostly after two or three: the error left is the square of that, and two steps more follow
    # With gradient, one step from the solution makes the first derivative exact, and two make the second one so.
    for _ in range(2):
        v = v + _newton_step(v, distance, t)
    return torch.log1p(v + distance) / (1 - t)


def _newton_step(v: Tensor, distance: Tensor, t: float) -> Tensor:
    x = v + distance
    p = torch.exp(torch.log1p(x) / (1 - t))
    total = p.sum(1, keepdim=True)
    return total * torch.expm1((t - 1) * total.log()) / (p / (1 + x)).sum(1, keepdim=True)  # p / (1 + x) is p^t


def bi_tempered_loss(logits: Tensor, t1: float = 0.8, t2: float = 1.2) -> Tensor:
    """Bi-tempered logistic loss ``-log_t1 p_j - (1 - sum_k p_k^(2 - t1)) / (2 - t1)``, p the softmax tempered by t2.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``.
        t1: Temperature of the logarithm ``log_t p = (p^(1 - t) - 1)/(1 - t)``; below 1 the loss is bounded.
        t2: Temperature of the softmax; above 1 its tail is heavy.

    Returns:
        Losses, same shape.

    Raises:
        ValueError: If ``t1`` is outside [0, 1] or ``t2`` below 1 or not finite.

    Example:
        >>> bi_tempered_loss(torch.zeros(1, 2), t1=1.0, t2=1.0)
        tensor([[0.6931, 0.6931]])
        >>> bi_tempered_loss(torch.tensor([[4.0, 0.0]]), t1=0.5, t2=2.0)
        tensor([[0.0752, 1.0001]])
    """
    check_interval("t1", t1, "[0, 1]", "the temperature of the logarithm")
    check_interval("t2", t2, "[1, inf)", "the temperature of the softmax")
    log_p = log_tempered_softmax(logits, t2)
    rest = (1 - torch.exp((2 - t1) * log_p).sum(1, keepdim=True)) / (2 - t1)
    return (-log_p if t1 == 1 else generalized_cross_entropy(log_p, 1 - t1)) - rest
