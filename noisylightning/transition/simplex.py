"""Rows brought back among the distributions."""

import torch
from torch import Tensor


def project_to_simplex(rows: Tensor) -> Tensor:
    r"""The distribution nearest to each row: ``max(row - tau, 0)``, with ``tau`` such that it sums to one.

    Duchi et al. (ICML 2008), Algorithm 1. Differentiable wherever the set of positive entries stays the same.

    Args:
        rows: Shape ``(..., C)``.

    Returns:
        Shape ``(..., C)``; what is a distribution already comes back as it is, up to rounding.

    Example:
        >>> project_to_simplex(torch.tensor([[0.7, 0.5], [1.5, -0.5]]))
        tensor([[0.6000, 0.4000],
                [1.0000, 0.0000]])
    """
    ranked = rows.sort(dim=-1, descending=True).values
    excess = ranked.cumsum(dim=-1) - 1
    taus = excess / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    last = (ranked > taus).sum(dim=-1, keepdim=True) - 1  # of the positive entries
    return (rows - taus.gather(-1, last)).clamp(min=0)
