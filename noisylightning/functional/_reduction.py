"""From one loss per sample to the number that is minimised, as ``torch.nn.functional.cross_entropy`` does it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisylightning.functional._checks import values_readable

Reduction = Literal["mean", "sum", "none"]


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities over dimension 1, in float32 at least: half-precision logits are widened on the way.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``.

    Returns:
        Log-probabilities of the same shape.

    Example:
        >>> log_softmax(torch.zeros(1, 4, dtype=torch.bfloat16)).exp()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def pick(vector: Tensor, labels: Tensor) -> Tensor:
    """Entry ``y`` of each vector, that is ``l_y``.

    Args:
        vector: One value per class, shape ``(N, C, d1, ...)``.
        labels: Class indices, shape ``(N, d1, ...)``, none of them ignored.

    Returns:
        Shape ``(N, d1, ...)``.

    Example:
        >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
        tensor([2., 3.])
    """
    return vector.gather(1, labels.unsqueeze(1)).squeeze(1)


def class_last(tensor: Tensor) -> Tensor:
    """One row of classes per target: ``(N, C, d1, ...)`` as ``(N * d1 * ..., C)``."""
    return tensor if tensor.ndim == 2 else tensor.movedim(1, -1).flatten(0, -2)


def expectation(vector: Tensor, weights: Tensor) -> Tensor:
    """``sum_j q_j l_j`` over dimension 1; a label of weight zero counts nothing even if its loss is infinite.

    Args:
        vector: The loss of every label, shape ``(N, C, d1, ...)``.
        weights: One factor per label, of any sign, same shape.

    Returns:
        Shape ``(N, d1, ...)``.

    Example:
        >>> expectation(torch.tensor([[1.0, 2.0, torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]]))
        tensor([1.5000])
    """
    if vector.is_cpu and values_readable(vector, weights):
        total = (weights * vector).sum(1)
        if not total.isnan().any():
            return total
    return (weights * vector.masked_fill((weights == 0) & vector.isinf(), 0)).sum(1)


def weigh(target: Tensor, weight: Tensor | None) -> Tensor:
    """Probabilities times the class weights: the way by which weights enter an expectation over labels.

    Args:
        target: One factor per label, shape ``(N, C, d1, ...)``.
        weight: One factor per class, shape ``(C,)``.

    Returns:
        Same shape as ``target``.

    Example:
        >>> weigh(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 4.0]))
        tensor([[0.5000, 2.0000]])
    """
    return target if weight is None else target * weight.to(target.dtype).view(-1, *[1] * (target.ndim - 2))


def reduce_values(
    values: Tensor,
    labels: Tensor,
    *,
    kept: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Tensor:
    """Weight, mask and reduce per-sample losses as :func:`torch.nn.functional.cross_entropy` does.

    Args:
        values: Losses, shape ``(N, d1, ...)``.
        labels: Class indices of the same shape, none of them ignored, or probabilities ``(N, C, d1, ...)``.
            Probabilities have carried their class weights into ``values`` already, so that ``weight`` does nothing.
        kept: Which values count, same shape as ``values``. Default: all.
        weight: One factor per class, shape ``(C,)``. The mean divides by the sum of the factors.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weighted: Whether ``values`` carry the class weights already, so that they enter the mean's divisor alone.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``.

    Example:
        >>> values, labels = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 1, 0])
        >>> reduce_values(values, labels, kept=torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    factor = None
    if weight is not None and not labels.is_floating_point():
        factor = weight.to(values.dtype)[labels]
        values = values if weighted else values * factor
    if kept is not None:
        values = values.masked_fill(~kept, 0)
        factor = kept.to(values.dtype) if factor is None else factor * kept
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction != "mean":
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
    return values.mean() if factor is None else values.sum() / factor.sum()
