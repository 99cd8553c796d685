"""What predictions and noisy labels must be, wherever T is estimated from them."""

import math

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue

_ENTRIES = 2**18  # of a table are looked at at a time: they stay in the processor's cache


def check_probabilities(probs: Tensor) -> None:
    """Raise unless ``probs`` is a table of probabilities, each row summing to one.

    Args:
        probs: Predicted noisy posterior p(noisy | x), shape ``(N, C)``.

    Raises:
        TypeError: If they are not floating point.
        ValueError: If they are no table, or a row is NaN, infinite, negative or does not sum to one.

    Example:
        >>> check_probabilities(torch.tensor([[0.5, 0.5], [0.5, 0.75]]))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: Predictions must be rows of probabilities, but row 1 has ... the sum 1.25: ...
    """
    if not probs.is_floating_point():
        raise BadType(f"Predictions must be floating-point probabilities, got {probs.dtype}: pass softmax(logits).")
    if probs.ndim != 2 or probs.shape[1] < 2:
        raise BadValue(
            f"Predictions must hold a table (N, C), a column for each of at least 2 classes, got {tuple(probs.shape)}."
        )
    size = max(1, _ENTRIES // probs.shape[1])
    for start in range(0, len(probs), size):
        _check_rows(probs[start : start + size], start)


def _check_rows(probs: Tensor, start: int) -> None:
    smallest, largest = (value.item() for value in probs.aminmax())  # NaN where there is one
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise not_finite(~probs.isfinite().all(dim=1), start)
    sums = probs.sum(dim=1, dtype=torch.float64)
    if smallest < 0 or (sums - 1).abs().max() > sum_tolerance(probs.dtype):
        row = int(probs.amin(dim=1).argmin() if smallest < 0 else (sums - 1).abs().argmax())
        raise BadValue(
            f"Predictions must be rows of probabilities, but row {start + row} has the minimum"
            f" {float(probs[row].min()):.4g} and the sum {float(sums[row]):.4g}: pass softmax(logits)."
        )


def not_finite(rows: Tensor, start: int = 0) -> BadValue:
    """Make the error about rows that are NaN or infinite.

    Args:
        rows: Which they are, bool of shape ``(N,)``.
        start: The place of the first of the N.
    """
    first = start + int(rows.nonzero()[0])
    return BadValue(
        f"There are NaN or infinite predictions (first in row {first} of the batch): the network has diverged; lower"
        " the learning rate or check its inputs."
    )


def sum_tolerance(dtype: torch.dtype) -> float:
    """By how much a row of probabilities of this dtype may miss one."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2


def check_noisy_labels(labels: Tensor, num_examples: int, num_classes: int, lowest: int = 0) -> None:
    """Raise unless ``labels`` are classes, one for each prediction.

    Args:
        labels: Noisy labels, integers of shape ``(N,)``.
        num_examples: The number N of predictions.
        num_classes: The number C of classes.
        lowest: The least value that is allowed, 0 or, for unknown labels, -1.

    Raises:
        TypeError: If they are not integers.
        ValueError: If they are not N, or one is no class.

    Example:
        >>> check_noisy_labels(torch.tensor([0, 3]), num_examples=2, num_classes=3)
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: Noisy labels must be labels between 0 and 2, got 3: ...
    """
    check_labels(labels, num_classes, "noisy labels", lowest)
    if labels.shape != (num_examples,):
        raise BadValue(
            f"There are {num_examples} predictions and noisy labels of shape {tuple(labels.shape)}: pass one label a"
            " prediction."
        )


def check_labels(labels: Tensor, num_classes: int, what: str, lowest: int = 0) -> None:
    """Raise unless every entry is a class; ``lowest=-1`` lets -1 stand for an unknown one.

    Args:
        labels: Integers of any shape.
        num_classes: The number C of classes.
        what: What the error calls them.
        lowest: The least value that is allowed, 0 or -1.

    Raises:
        TypeError: If they are not integers.
        ValueError: If one is no class.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise BadType(f"T-hat needs integer {what}, got {labels.dtype}: pass class indices 0 to {num_classes - 1}.")
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < lowest or high >= num_classes:
        unknown = ", or -1 for an unknown one," if lowest == -1 else ","
        raise BadValue(
            f"{what.capitalize()} must be labels between 0 and {num_classes - 1}{unknown} got"
            f" {low if low < lowest else high}: check the labels or num_classes."
        )


def check_every_class(class_counts: Tensor) -> None:
    """Raise unless every class has a noisy label.

    Args:
        class_counts: How many examples carry each label, integers of shape ``(C,)``.

    Raises:
        ValueError: If there is no example at all, or none of some class.

    Example:
        >>> check_every_class(torch.tensor([5, 0]))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: T cannot be estimated: no example among 5 carries the noisy label 1; ...
    """
    total = int(class_counts.sum())
    if total == 0:
        raise BadValue("T cannot be estimated from no example: the loader is empty; pass one with the training data.")
    missing = (class_counts == 0).nonzero().flatten().tolist()
    if missing:
        raise BadValue(
            f"T cannot be estimated: no example among {total} carries the noisy label"
            f" {', '.join(map(str, missing[:10]))}{' ...' if len(missing) > 10 else ''};"
            " lower num_classes or add examples of it."
        )
