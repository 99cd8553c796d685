"""Small operations on tensors that everything above is built of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def values_readable(*tensors: Tensor) -> bool:
    """Whether Python may look at the values of all of them (not while compiling, not inside ``vmap``)."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not torch.compiler.is_compiling() and not any(map(wrapped, tensors))
