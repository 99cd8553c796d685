"""The table of an audit: one row a sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue


@dataclass(frozen=True, eq=False)
class AuditTable:
    """How probably each label is wrong, and which is the most probable instead; one row a sample, in order of index.

    Args:
        index: Places in the training data, int64, shape ``(N,)``, ascending, none twice.
        noisy_labels: The given labels, int64, shape ``(N,)``.
        wrong: Probability that the given label is wrong, float64, shape ``(N,)``.
        labels: The most probable clean label, int64, shape ``(N,)``.
        label_probs: Its probability, float64, shape ``(N,)``.
        class_names: The C names.
        samples: File name or text of each sample, where known.

    Raises:
        TypeError: If a column is of the wrong dtype.
        ValueError: If a shape or a value is out of bounds.

    Example:
        >>> table = AuditTable(
        ...     index=torch.tensor([0, 1]),
        ...     noisy_labels=torch.tensor([1, 0]),
        ...     wrong=torch.tensor([0.9, 0.1], dtype=torch.float64),
        ...     labels=torch.tensor([0, 0]),
        ...     label_probs=torch.tensor([0.9, 0.9], dtype=torch.float64),
        ...     class_names=("cat", "dog"),
        ... )
        >>> len(table), table.ranked.tolist()
        (2, [0, 1])
    """

    index: Tensor
    noisy_labels: Tensor
    wrong: Tensor
    labels: Tensor
    label_probs: Tensor
    class_names: tuple[str, ...]
    samples: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        num = len(self.index)
        for name, dtype in _DTYPES.items():
            column: Tensor = getattr(self, name)
            if column.dtype != dtype:
                raise BadType(f"{name} must be {dtype}, got {column.dtype}.")
            if column.shape != (num,):
                raise BadValue(f"{name} must be of shape ({num},), one entry a sample, got {tuple(column.shape)}.")
        if num and (int(self.index[0]) < 0 or (self.index.diff() <= 0).any()):
            raise BadValue("index must be places in the training data, ascending and none twice.")
        for name in ("noisy_labels", "labels"):
            column = getattr(self, name)
            outside = (column < 0) | (column >= len(self.class_names))
            if outside.any():
                raise BadValue(
                    f"{name} holds {int(column[outside][0])} but there are {len(self.class_names)} classes: labels run "
                    f"from 0 to {len(self.class_names) - 1}."
                )
        for name in ("wrong", "label_probs"):
            column = getattr(self, name)
            outside = ~((column >= 0) & (column <= 1))
            if outside.any():
                raise BadValue(f"{name} must be probabilities, got {float(column[outside][0])}.")
        if self.samples is not None and len(self.samples) != num:
            raise BadValue(f"There are {len(self.samples)} samples' names and {num} rows: give one a row.")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def ranked(self) -> Tensor:
        """Rows from the most to the least probably wrong, ties in order of index, int64, shape ``(N,)``."""
        return self.wrong.argsort(descending=True, stable=True)


_DTYPES = {
    "index": torch.int64,
    "noisy_labels": torch.int64,
    "wrong": torch.float64,
    "labels": torch.int64,
    "label_probs": torch.float64,
}
