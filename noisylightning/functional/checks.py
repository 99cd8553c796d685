"""What logits and targets must be: shapes and dtypes always, values where reading them is free."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.tensors import values_readable
from noisylightning.transition import Transition


def check_inputs(logits: Tensor, target: Tensor) -> None:
    """Raise unless ``logits`` and ``target`` have the shapes and dtypes of :func:`torch.nn.functional.cross_entropy`.

    Reads no values, so it never waits for an accelerator.

    Args:
        logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``, floating dtype.
        target: Class indices, int64 of shape ``()`` or ``(N, d1, ...)``, or probabilities, floating, shaped as
            ``logits``.

    Raises:
        TypeError: A dtype that is neither a score, an index nor a probability.
        ValueError: Shapes that do not go together.
    """
    if not logits.is_floating_point():
        raise BadType(f"logits must be floating, got {logits.dtype}: pass the network's raw scores.")
    if logits.ndim == 0:
        raise BadValue("logits have no class dimension: pass shape (C,) or (N, C, ...).")
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise BadValue(
                f"a {target.dtype} target is read as class probabilities and must have the logits' shape "
                f"{tuple(logits.shape)}, got {tuple(target.shape)}: pass class indices as int64."
            )
        return
    if target.dtype != torch.int64:
        raise BadType(f"target must be int64 class indices or floating probabilities, got {target.dtype}.")
    expected = logits.shape[:-1] if logits.ndim <= 2 else logits.shape[:1] + logits.shape[2:]
    if target.shape != expected:
        raise BadValue(
            f"target has shape {tuple(target.shape)} but logits {tuple(logits.shape)} need {tuple(expected)} class "
            "indices: the classes are dimension 1 of the logits."
        )


def validate_target(target: Tensor, num_classes: int, ignore_index: int = -100) -> None:
    """Raise unless every value in ``target`` is a class, ``ignore_index``, or a probability vector.

    Reads the values: on an accelerator this waits for it, so the losses do so at their first call only, and on the
    CPU at every call.

    Args:
        target: Class indices of any shape, or probabilities ``(C,)`` or ``(N, C, d1, ...)``.
        num_classes: The number of classes C.
        ignore_index: The index that marks an entry without a label.

    Raises:
        ValueError: A label outside ``0..C-1``, or probabilities that are negative, not finite or do not sum to one.

    Example:
        >>> validate_target(torch.tensor([0, 3]), num_classes=3)
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: target holds label 3 but there are 3 classes: labels run ...
    """
    if target.numel() == 0:
        return
    if not target.is_floating_point():
        wrong = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
        if wrong.any():
            raise BadValue(
                f"target holds label {int(target[wrong][0])} but there are {num_classes} classes: labels run from 0 to "
                f"{num_classes - 1}, and {ignore_index} (ignore_index) marks an entry without one."
            )
        return
    sums = target.sum(dim=1 if target.ndim > 1 else 0, dtype=torch.promote_types(target.dtype, torch.float32))
    # A half-precision probability is off by up to 2^-9 of itself (bfloat16), and so is its sum.
    tolerance = max(1e-4, 4 * torch.finfo(target.dtype).eps)
    off = ~((sums - 1).abs() <= tolerance)  # negated, so that NaN is wrong too
    if off.any():
        raise BadValue(
            f"a soft target sums to {float(sums[off][0]):.6g} over the classes, not to one: normalise it, or pass "
            "class indices as int64."
        )
    if target.min() < 0:
        raise BadValue(f"a soft target holds {float(target.min()):.6g}: probabilities cannot be negative.")


def check_arguments(
    logits: Tensor,
    target: Tensor,
    transition: Transition,
    weight: Tensor | None,
    label_smoothing: float,
) -> None:
    """Raise on whatever a functional corrected loss cannot be computed from, but for the values of its target."""
    check_inputs(logits, target)
    transition.check_logits(logits)
    classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    if weight is not None and weight.shape != (classes,):
        raise BadValue(f"weight has shape {tuple(weight.shape)} but logits have {classes} classes.")
    if not 0 <= label_smoothing <= 1:
        raise BadValue(f"label_smoothing must lie in [0, 1], got {label_smoothing}.")


def mask_ignored(target: Tensor, num_classes: int, ignore_index: int = -100) -> tuple[Tensor, Tensor | None]:
    """Put class 0 where a label is to be ignored, so that all can be looked up; on the CPU, check their values too.

    Args:
        target: Class indices of any shape, or probabilities ``(N, C, d1, ...)``.
        num_classes: The number of classes C.
        ignore_index: The index that marks an entry without a label.

    Returns:
        The labels, with class 0 in place of ``ignore_index``, and the mask of those that count: None where all do.

    Raises:
        ValueError: As :func:`validate_target`, on the CPU.

    Example:
        >>> mask_ignored(torch.tensor([2, -100]), num_classes=3)
        (tensor([2, 0]), tensor([ True, False]))
        >>> mask_ignored(torch.tensor([2, 1]), num_classes=3)
        (tensor([2, 1]), None)
    """
    on_cpu = target.is_cpu and values_readable(target)
    if target.is_floating_point():
        if on_cpu:
            validate_target(target, num_classes)
        return target, None
    if on_cpu:
        if not target.numel():
            return target, None
        low, high = (bound.item() for bound in torch.aminmax(target))
        if low < 0 or high >= num_classes:
            validate_target(target, num_classes, ignore_index)
        elif not low <= ignore_index <= high:
            return target, None
    mask = target != ignore_index
    return target.masked_fill(~mask, 0), mask
