"""What logits and targets must be: shapes and dtypes always, values where reading them is free."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional._protocol import StructuredTransition
from noisylightning.tensors import values_readable


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
    expected = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else logits.shape[1:]
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
        ValueError: target holds label 3 but there are 3 classes: labels run from 0 to 2, and -100 (ignore_index) ...
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


def check_transition(transition: Tensor | StructuredTransition, logits: Tensor) -> None:
    """Raise unless T goes with the logits; its values are not read (see ``transition.validate_transition``).

    Args:
        transition: T, shape ``(C, C)``, or a structured T.
        logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``.

    Raises:
        TypeError: T is no floating tensor.
        ValueError: T is not square, of another C, or on another device.
    """
    classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    if not isinstance(transition, Tensor):
        if transition.num_classes != classes:
            raise BadValue(f"T is for {transition.num_classes} classes but logits have {classes}.")
        return
    if not transition.is_floating_point():
        raise BadType(f"the transition matrix must be a floating tensor, got {transition.dtype}.")
    if transition.shape != (classes, classes):
        raise BadValue(
            f"logits with {classes} classes need a transition matrix of shape {(classes, classes)}, got "
            f"{tuple(transition.shape)}."
        )
    if transition.device != logits.device:
        raise BadValue(
            f"the transition matrix is on {transition.device} but the logits are on {logits.device}: move it with "
            ".to(), or use a correction module, which moves it with the model."
        )


def check_arguments(
    logits: Tensor,
    target: Tensor,
    transition: Tensor | StructuredTransition,
    weight: Tensor | None,
    label_smoothing: float,
) -> None:
    """Raise on whatever a functional corrected loss cannot be computed from, but for the values of its target."""
    check_inputs(logits, target)
    check_transition(transition, logits)
    classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
    if weight is not None and weight.shape != (classes,):
        raise BadValue(f"weight has shape {tuple(weight.shape)} but logits have {classes} classes.")
    if not 0 <= label_smoothing <= 1:
        raise BadValue(f"label_smoothing must lie in [0, 1], got {label_smoothing}.")


def settle_target(target: Tensor, num_classes: int, ignore_index: int = -100) -> tuple[Tensor, Tensor | None]:
    """Make the labels fit to be looked up; on the CPU, check their values too.

    Args:
        target: Class indices of any shape, or probabilities ``(N, C, d1, ...)``.
        num_classes: The number of classes C.
        ignore_index: The index that marks an entry without a label.

    Returns:
        The target with class 0 in place of ``ignore_index``, and a mask of the labels that count: None where all do.

    Raises:
        ValueError: As :func:`validate_target`, on the CPU.

    Example:
        >>> settle_target(torch.tensor([2, -100]), num_classes=3)
        (tensor([2, 0]), tensor([ True, False]))
        >>> settle_target(torch.tensor([2, 1]), num_classes=3)
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
    kept = target != ignore_index
    return target.masked_fill(~kept, 0), kept
