"""The order of the rows of a T that is known up to it."""

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor


def row_order(transition: Tensor) -> Tensor:
    """Return the order of the rows in which the product of the diagonal is largest.

    Args:
        transition: T, its rows in any order, ``(C, C)``.

    Returns:
        For each class the row that is its own, ``(C,)``.

    Example:
        >>> row_order(torch.tensor([[0.3, 0.7], [0.8, 0.2]]))
        tensor([1, 0])
    """
    rows, names = linear_sum_assignment(-transition.clamp_min(1e-12).log().cpu().numpy())
    return torch.from_numpy(rows[names.argsort()]).to(transition.device)
