"""Which of several T-hats to take."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noisylightning.transition import relative_l1_error


def most_central(transitions: Sequence[Tensor]) -> int:
    """Return the place of the T-hat that the others are nearest to, by the sum of relative L1 distances.

    Args:
        transitions: At least one, each ``(C, C)``.

    Example:
        >>> import torch
        >>> most_central([torch.eye(2), torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([[0.8, 0.2], [0.1, 0.9]])])
        1
    """
    distances = [sum(float(relative_l1_error(one, other)) for other in transitions) for one in transitions]
    return distances.index(min(distances))


def paired_gain(log_likelihood: Tensor, other: Tensor) -> tuple[float, float]:
    """Return by how much one model foretells the labels better than another, and the standard error of that.

    Args:
        log_likelihood: Of each sample's label by the one, shape ``(N,)``.
        other: Of the same samples by the other.

    Returns:
        The mean difference a sample, and its standard error over samples.

    Example:
        >>> import torch
        >>> paired_gain(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.5, -1.5, -2.0]))
        (0.333..., 0.166...)
    """
    gains = (log_likelihood - other).double()
    return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))


def smallest_distance(transition: Tensor) -> float:
    """Return the total variation between the two rows of T that are most alike, in [0, 1].

    Args:
        transition: Row-stochastic, shape ``(C, C)``.

    Example:
        >>> smallest_distance(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
        0.25
    """
    rows = transition.double()
    distances = torch.cdist(rows, rows, p=1) / 2
    return float(distances.fill_diagonal_(torch.inf).min())
