"""Sums of numbers in [0, 1] that come out the same in any order: they are kept as integers."""

from torch import Tensor

_FRACTION_BITS = 36  # rounds by 2^-37, a float32 below one by 2^-25; 2^27 ones fit into an int64


def to_fixed(values: Tensor) -> Tensor:
    """Round numbers to whole multiples of 2^-36, which add up exactly.

    Args:
        values: Numbers whose sum is below 2^27, floating, any shape.

    Returns:
        The multiples, int64, same shape.

    Example:
        >>> import torch
        >>> values = torch.tensor([0.1, 0.2, 0.3])
        >>> to_fixed(values).sum().equal(to_fixed(values.flip(0)).sum())
        True
        >>> from_fixed(to_fixed(values).sum())
        tensor(0.6000, dtype=torch.float64)
    """
    return (values.double() * 2**_FRACTION_BITS).round().long()


def from_fixed(sums: Tensor) -> Tensor:
    """Return sums of what :func:`to_fixed` gave as numbers, float64."""
    return sums.double() / 2**_FRACTION_BITS
