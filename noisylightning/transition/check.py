"""Check, compare and invert transition matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.tensors import values_readable

LARGEST_CONDITION = 1 / torch.finfo(torch.float64).eps  # what float64 resolves


def validate_transition(transition: Tensor, num_classes: int | None = None) -> None:
    """Raise unless ``transition`` is a square row-stochastic matrix.

    Args:
        transition: The matrix, shape ``(C, C)``, floating dtype.
        num_classes: The C that it must have, if that is known.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Not square, of another C, not finite, negative, or a row that does not sum to one.

    Example:
        >>> validate_transition(torch.tensor([[0.9, 0.2], [0.0, 1.0]]))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: row 0 of the transition matrix sums to 1.1, not to one: ...
    """
    if not isinstance(transition, Tensor) or not transition.is_floating_point():
        seen = transition.dtype if isinstance(transition, Tensor) else type(transition).__name__
        raise BadType(f"the transition matrix must be a floating tensor, got {seen}.")
    transition = transition.detach()
    if transition.ndim != 2 or transition.shape[0] != transition.shape[1]:
        raise BadValue(f"the transition matrix must be square, (C, C), got shape {tuple(transition.shape)}.")
    if num_classes is not None and len(transition) != num_classes:
        raise BadValue(
            f"the transition matrix is for {len(transition)} classes but {num_classes} are expected: pass the T of "
            "this data set."
        )
    if transition.is_meta:  # a network that is only sketched yet has no values
        return
    for wrong, word in ((~transition.isfinite(), "not a finite number"), (transition < 0, "negative")):
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            raise BadValue(
                f"the transition matrix holds {float(transition[i, j]):.6g} at row {i}, column {j}, which is {word}: "
                "its entries are probabilities."
            )
    sums = transition.sum(1, dtype=torch.float64)
    row = int((sums - 1).abs().argmax())
    if abs(float(sums[row]) - 1) > 1e-4:
        hint = " (its columns do: transpose it)" if bool(((transition.sum(0) - 1).abs() <= 1e-4).all()) else ""
        raise BadValue(
            f"row {row} of the transition matrix sums to {float(sums[row]):.6g}, not to one{hint}: "
            "T[i, j] = p(noisy = j | clean = i) has one distribution per row."
        )


def relative_l1_error(estimate: Tensor, true: Tensor) -> Tensor:
    """The error of an estimated T as published tables give it: ``sum |T_hat - T| / sum T``.

    Args:
        estimate: T-hat, shape ``(C, C)``, dense or sparse.
        true: T, shape ``(C, C)``, dense or sparse.

    Returns:
        A scalar, 0 for a perfect estimate and at most 2 for row-stochastic ones.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> relative_l1_error(torch.eye(2), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        tensor(0.2000)
    """
    if estimate.shape != true.shape:
        raise BadValue(f"the estimate has shape {tuple(estimate.shape)} but the true T {tuple(true.shape)}.")
    if estimate.layout != true.layout:
        estimate, true = estimate.to_dense(), true.to_dense()
    return (estimate - true).abs().sum() / true.sum()


def condition_number(transition: Tensor) -> Tensor:
    """The condition number of T in the infinity norm: the most by which backward correction can amplify a loss.

    It is the largest absolute row sum of ``T^-1``, since the rows of T sum to one: backward's loss is
    ``(T^-1 l)_y``, which is at most that many times the largest ``|l_j|``.

    Args:
        transition: T, shape ``(C, C)``.

    Returns:
        A float64 scalar, at least 1, and infinity for a singular T.

    Example:
        >>> from noisylightning.transition import symmetric
        >>> condition_number(symmetric(10, 0.5))
        tensor(3.2500, dtype=torch.float64)
    """
    inverse, singular = torch.linalg.inv_ex(transition.double())
    return inverse.abs().sum(1).max() if singular == 0 else inverse.new_tensor(torch.inf)


def invert_transition(transition: Tensor, max_condition: float = LARGEST_CONDITION) -> Tensor:
    """``T^-1``, computed in float64.

    Args:
        transition: T, row-stochastic, shape ``(C, C)``. Differentiable.
        max_condition: Refuse a T whose condition number is larger. In the infinity norm it is the largest absolute row
            sum of ``T^-1``, the most by which backward correction can amplify a loss. Default: what float64 resolves.

    Returns:
        Shape ``(C, C)``, dtype of ``transition``; its rows sum to one.

    Raises:
        ValueError: T is singular, or its condition number past the bound.

    Example:
        >>> invert_transition(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        tensor([[ 1.3333, -0.3333],
                [-0.3333,  1.3333]])
    """
    with torch.autocast(transition.device.type, enabled=False):
        inverse, singular = torch.linalg.inv_ex(transition.double())
    if values_readable(inverse):
        check_condition(float("inf") if bool(singular) else float(inverse.detach().abs().sum(1).max()), max_condition)
    return inverse.to(transition.dtype).contiguous()  # a row per label is what is read


def check_condition(condition: float, max_condition: float) -> None:
    """Raise :class:`ValueError` if T's condition number is past the bound, or NaN."""
    if not condition <= max_condition:
        raise BadValue(
            f"the transition matrix has condition number {condition:.4g}, past the bound {max_condition:.4g}: backward "
            "correction would amplify the losses that much; use forward correction, or raise max_condition."
        )
