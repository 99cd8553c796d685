"""From one loss per sample to the number that is minimised, as ``torch.nn.functional.cross_entropy`` does it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from noisylightning.errors import BadValue

Reduction = Literal["mean", "sum", "none"]


def weigh(target: Tensor, weight: Tensor | None) -> Tensor:
    """Probabilities times the class weights: the way by which weights enter an expectation over labels.

    Args:
        target: One factor per label, shape ``(N, C, d1, ...)``.
        weight: One factor per class, shape ``(C,)``.

    Returns:
        Same shape as ``target``.

    Example:
        >>> import torch
        >>> weigh(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 4.0]))
        tensor([[0.5000, 2.0000]])
    """
    return target if weight is None else target * weight.to(target.dtype).view(-1, *[1] * (target.ndim - 2))


def reduce_values(
    values: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    weighted: bool = False,
) -> Tensor:
    """Weight, mask and reduce per-sample losses as :func:`torch.nn.functional.cross_entropy` does.

    Args:
        values: Losses, shape ``(N, d1, ...)``.
        labels: Class indices of the same shape, none of them ignored, or probabilities ``(N, C, d1, ...)``.
            Probabilities have carried their class weights into ``values`` already, so that ``weight`` does nothing.
        mask: Which values count, same shape as ``values``. Default: all.
        weight: One factor per class, shape ``(C,)``. The mean divides by the sum of the factors.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        weighted: Whether ``values`` carry the class weights already, so that they enter the mean's divisor alone.

    Returns:
        A scalar, or shape ``(N, d1, ...)`` for ``"none"``.

    Example:
        >>> import torch
        >>> values, labels = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 1, 0])
        >>> reduce_values(values, labels, mask=torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    factor = None
    if weight is not None and not labels.is_floating_point():
        factor = weight.to(values.dtype)[labels]
        values = values if weighted else values * factor
    if mask is not None:
        values = values.masked_fill(~mask, 0)
        factor = mask.to(values.dtype) if factor is None else factor * mask
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction != "mean":
        raise BadValue(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
    return values.mean() if factor is None else values.sum() / factor.sum()
