"""What the outputs of a network are: logits, as every loss here takes them, or something else."""

import torch
from torch import Tensor


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
