"""How sure T can be by the labels of samples whose p(clean | x) is known: the Fisher information."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.tensors import log_softmax
from noisylightning.transition import Transition, as_transition

MOST_CLASSES = 128  # the information takes C^3 numbers, and as many operations a sample
_SAMPLES = 2**15  # that it is averaged over at most
_LEAST = 1e-12  # p(noisy = j | x), below which a label is as good as impossible
_RIDGE = 1e-10  # of the diagonal: classes that p(x) cannot tell apart have no inverse
_LARGEST = 0.5  # standard deviation that a number in [0, 1] can have


def standard_error(logits: Tensor, transition: Tensor | Transition, index: Tensor | None = None) -> Tensor:
    r"""Standard error of the T that makes the labels most probable, for networks that stay as they are.

    Expectation maximisation goes towards this T, and the standard error of a single step, whose start is taken for
    granted, is too small where classes overlap. With q(x) = p(x) T the information about column j is

    .. math:: H_j = \sum_x p(x) p(x)^\top / q_j(x),

    and, rows of T summing to one, the covariance of column j is
    :math:`H_j^{-1} - H_j^{-1} (\sum_k H_k^{-1})^{-1} H_j^{-1}` (the Cramér-Rao bound under linear constraints, Gorman
    and Hero 1990). Where the classes are known it is that of shares, T_ij (1 - T_ij) / N_i.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``.
        transition: T-hat, ``(C, C)``.
        index: Places of the samples in their data set, shape ``(N,)``: with them the result is the same in any order.
            Of more than 32,768 samples evenly spaced ones speak for all.

    Returns:
        float64, ``(C, C)``, at most 0.5.

    Raises:
        ValueError: If shapes do not go together, there are more than 128 classes, or no sample may be of a class.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> sure = 50.0 * torch.eye(2).repeat(50, 1)  # fifty samples of each class
        >>> standard_error(sure, T)
        tensor([[0.0566, 0.0566],
                [0.0648, 0.0648]], dtype=torch.float64)
    """
    dense = as_transition(transition, copy=False).to_dense().double()
    num_classes = len(dense)
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise BadValue(f"logits must be of shape (N, {num_classes}) for this T, got {tuple(logits.shape)}.")
    if num_classes > MOST_CLASSES:
        raise BadValue(
            f"The information about {num_classes} classes does not fit into memory, {MOST_CLASSES} are the most: use"
            " the bootstrap (replicates)."
        )
    order = torch.arange(len(logits), device=logits.device) if index is None else index.argsort()
    step = -(-len(logits) // _SAMPLES)
    p = log_softmax(logits[order[::step]].double()).exp()
    without = (p.sum(dim=0) == 0).nonzero()
    if len(without):
        raise BadValue(f"The network holds no sample for one of class {int(without[0])}: train it for longer.")
    q = (p @ dense).clamp_min(_LEAST)
    information = torch.stack([(p / q[:, j, None]).T @ p for j in range(num_classes)]) * (len(logits) / len(p))
    inverse = _inverse(information)
    covariance = inverse - inverse @ _inverse(inverse.sum(dim=0)) @ inverse
    return covariance.diagonal(dim1=1, dim2=2).T.clamp(0, _LARGEST**2).sqrt()


def _inverse(matrices: Tensor) -> Tensor:
    """Invert positive definite matrices whose diagonals may be of any size."""
    scale = matrices.diagonal(dim1=-2, dim2=-1).rsqrt()
    scale = scale[..., :, None] * scale[..., None, :]
    ridge = _RIDGE * torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    inverse: Tensor = torch.linalg.inv(matrices * scale + ridge)
    return inverse * scale
