"""What the outputs of a network are: logits, as every loss here takes them, or something else."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether outputs that should be logits have been through a softmax: no entry below 0, and rows that sum to one.

    Args:
        logits: Outputs of shape (N, C) or (N, C, d1, ...), C at least 2.

    Returns:
        True if every row is a distribution. Log-probabilities are logits, too, and give False.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
        >>> looks_like_probabilities(logits), looks_like_probabilities(logits.softmax(dim=1))
        (False, True)
    """
    if logits.ndim < 2 or logits.shape[1] < 2 or not logits.numel():
        return False
    rounding = torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0.0  # of each entry, so of their sum
    excess = logits.detach().double().sum(dim=1) - 1
    return bool((logits >= 0).all() and (excess.abs() <= max(1e-4, 2 * rounding)).all())


def require_logits(outputs: Tensor) -> None:
    """Raise where a network's outputs have been through a softmax: every loss here would take a second one.

    Args:
        outputs: Outputs of shape (N, C) or (N, C, d1, ...).

    Raises:
        ValueError: If :func:`looks_like_probabilities`.

    Example:
        >>> require_logits(torch.full((2, 4), 0.25))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: The network's outputs are probabilities, whose rows sum to one, ...
    """
    if looks_like_probabilities(outputs):
        raise BadValue(
            "The network's outputs are probabilities, whose rows sum to one, and a softmax would be taken of them once"
            " more: drop the network's final softmax, so that it returns logits."
        )
