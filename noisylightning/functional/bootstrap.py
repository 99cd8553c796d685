"""Standard errors by the bootstrap over samples, in one pass and the same on any number of processes."""

import math

import torch
from torch import Tensor

from noisylightning.errors import BadValue

_LARGEST = 16  # a Poisson(1) variable is larger with probability 1e-15
_STEP = 0x9E3779B97F4A7C15 - 2**64  # the constants of splitmix64 (Steele et al. 2014), as signed numbers
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def bootstrap_weights(index: Tensor, replicates: int, seed: int = 0) -> Tensor:
    """Return how often each sample is in the sample itself, and in each of its Poisson-bootstrap replicates.

    The Poisson bootstrap (Hanley and MacGibbon 2006) draws for each sample and replicate a Poisson(1) number. Here it
    is a function of the seed, the sample's index and the replicate alone, whatever batch or process the sample is in.

    Args:
        index: Places of the samples in their data set, integers of shape ``(N,)``.
        replicates: Number of replicates B, at least 0.
        seed: Seed of the draw.

    Returns:
        int64 of shape ``(N, B + 1)``; the first column is one.

    Raises:
        ValueError: If a place is unknown (-1), so that its draw would not be its own.

    Example:
        >>> weights = bootstrap_weights(torch.arange(10000), replicates=2)
        >>> weights.sum(dim=0)
        tensor([10000,  9956,  9891])
    """
    if replicates and len(index) and int(index.min()) < 0:
        raise BadValue(
            "Standard errors by the bootstrap need the place of each sample in the data set, but some are unknown"
            " (index -1): give the index, or replicates=0."
        )
    ones = torch.ones(len(index), 1, dtype=torch.long, device=index.device)
    if not replicates:
        return ones
    streams = _mixed(torch.arange(1, replicates + 1, device=index.device) * _STEP + seed)
    uniform = _shifted(_mixed(index.long()[:, None] * _STEP + streams), 11).double() / 2**53
    bounds = torch.tensor([math.exp(-1) / math.factorial(k) for k in range(_LARGEST)], dtype=torch.float64).cumsum(0)
    return torch.cat([ones, torch.searchsorted(bounds.to(index.device), uniform, right=True)], dim=1)


def part_of(index: Tensor, parts: int, seed: int = 0) -> Tensor:
    """Put samples into parts of about equal size: a function of the seed and the sample's index alone.

    Args:
        index: Places of the samples in their data set, integers of shape ``(N,)``.
        parts: Number of parts.
        seed: Seed of the draw.

    Returns:
        Numbers from 0 to ``parts - 1``, int64 of shape ``(N,)``.

    Example:
        >>> part_of(torch.arange(1000), parts=2).bincount()
        tensor([531, 469])
    """
    return _shifted(_mixed(index.long() * _STEP + seed), 11) % parts


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift to the right as if the 64 bits had no sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)


def _mixed(bits: Tensor) -> Tensor:
    """Scramble 64 bits, one to one: the finalizer of splitmix64, in arithmetic that wraps around."""
    for by, factor in zip((30, 27), _MIX, strict=True):
        bits = (bits ^ _shifted(bits, by)) * factor
    return bits ^ _shifted(bits, 31)


def expected_l1_error(standard_error: Tensor) -> Tensor:
    r"""Return the relative L1 error of T-hat that its standard errors alone lead one to expect.

    It is :math:`\sqrt{2/\pi} \sum_{ij} s_{ij} / C`, since that is the mean of a normal error's absolute value.

    Args:
        standard_error: That of each entry of T-hat, shape ``(C, C)``.

    Returns:
        A scalar, to be compared with :func:`~noisylightning.transition.relative_l1_error`.

    Example:
        >>> expected_l1_error(torch.full((2, 2), 0.01))
        tensor(0.0160)
    """
    return math.sqrt(2 / math.pi) * standard_error.sum() / len(standard_error)


def standard_deviation(replicated: Tensor) -> Tensor:
    """Return the standard deviation over replicates, ``(B, ...)`` to ``(...)``, in float64.

    Args:
        replicated: An estimate from each of at least two replicates.

    Raises:
        ValueError: If there is only one.
    """
    if len(replicated) < 2:
        raise BadValue(f"A standard error takes at least 2 replicates, got {len(replicated)}: pass replicates=100.")
    return replicated.double().std(dim=0)
