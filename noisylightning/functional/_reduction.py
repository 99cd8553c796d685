"""From one loss per sample to the number that is minimised, as ``torch.nn.functional.cross_entropy`` does it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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


def pick(vector: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Entry ``target`` of each vector, that is ``l_y``; entry 0 where the target is ignored.

    Args:
        vector: One value per class, shape ``(N, C, d1, ...)``.
        target: Class indices, shape ``(N, d1, ...)``.
        ignore_index: The index that marks an entry without a label.

    Returns:
        Shape ``(N, d1, ...)``.

    Example:
        >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
        tensor([2., 3.])
    """
    safe = target.masked_fill(target == ignore_index, 0)
    return vector.gather(1, safe.unsqueeze(1)).squeeze(1)


def reduce_values(
    values: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """Weight, mask and reduce per-sample losses as :func:`torch.nn.functional.cross_entropy` does.

    Args:
        values: Losses, shape ``(N, d1, ...)``.
        target: Class indices of the same shape, or probabilities ``(N, C, d1, ...)``. Probabilities have carried
            their class weights into ``values`` already, so ``weight`` and ``ignore_index`` do not touch them.
        weight: One factor per class, shape ``(C,)``. The mean divides by the sum of the factors.
        ignore_index: Entries with this index count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``.

    Example:
        >>> reduce_values(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 1, -100]))
        tensor(1.5000)
    """
    if target.is_floating_point():
        return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()
    ignored = target == ignore_index
    values = values.masked_fill(ignored, 0)
    if weight is not None:
        factor = weight.to(values.dtype)[target.masked_fill(ignored, 0)].masked_fill(ignored, 0)
        values = values * factor
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    return values.sum() / (factor.sum() if weight is not None else (~ignored).sum())
