"""The table of an audit: one row a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.audit import judge_labels
from noisylightning.functional.probabilities import check_noisy_labels, check_probabilities


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

    @classmethod
    def from_probs(
        cls, probs: Tensor, noisy_labels: Tensor, class_names: Sequence[str] | None = None, **others: Any
    ) -> AuditTable:
        """Make the table from p(clean | x, noisy label), however that was found: by another tool's scores, for example.

        Args:
            probs: Probabilities of the classes, shape ``(N, C)``.
            noisy_labels: The given labels, integers of shape ``(N,)``.
            class_names: The C names; by default the numbers.
            **others: The other fields, ``index`` (by default 0 to N - 1) and ``samples``.

        Returns:
            The table.

        Raises:
            TypeError: If the probabilities are not floating, or the labels no integers.
            ValueError: If they are none, or as in :class:`AuditTable`.

        Example:
            >>> AuditTable.from_probs(torch.tensor([[0.1, 0.9]]), torch.tensor([0])).wrong
            tensor([0.9000], dtype=torch.float64)
        """
        check_probabilities(probs)
        check_noisy_labels(noisy_labels, *probs.shape)
        others.setdefault("index", torch.arange(len(probs)))
        names = range(probs.shape[1]) if class_names is None else class_names
        found = judge_labels(probs.double(), noisy_labels.long())
        return cls(noisy_labels=noisy_labels.long(), **found._asdict(), class_names=tuple(map(str, names)), **others)

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

    def soft_labels(self) -> Tensor:
        """Probabilities of the classes, as far as the table knows them, float64, shape ``(N, C)``.

        Exact for the given and for the most probable label; what is left is even over the others. With
        :attr:`noisy_labels` they are what cleanlab's ``find_label_issues`` takes, ``pred_probs`` and ``labels``.

        Example:
            >>> AuditTable.from_probs(torch.tensor([[0.25, 0.5, 0.15, 0.1]]), torch.tensor([0])).soft_labels()
            tensor([[0.2500, 0.5000, 0.1250, 0.1250]], dtype=torch.float64)
        """
        return soft_labels(self.noisy_labels, self.wrong, self.labels, self.label_probs, self.num_classes)

    def sample_weights(self) -> Tensor:
        """The probability that each label is right, which :class:`~noisylightning.losses.SampleWeighted` weighs by.

        By place in the training data, up to the last that the table has; 1 where it has none, as for trusted samples.

        Returns:
            float32, shape ``(index[-1] + 1,)``.

        Example:
            >>> table = AuditTable.from_probs(
            ...     torch.tensor([[0.25, 0.75]]), torch.tensor([0]), index=torch.tensor([1])
            ... )
            >>> table.sample_weights()
            tensor([1.0000, 0.2500])
        """
        weights = torch.ones(int(self.index[-1]) + 1 if len(self) else 0)
        weights[self.index] = (1 - self.wrong).float()
        return weights


def soft_labels(noisy_labels: Tensor, wrong: Tensor, labels: Tensor, label_probs: Tensor, num_classes: int) -> Tensor:
    """:meth:`AuditTable.soft_labels` of columns, each of shape ``(N,)``."""
    known = torch.where(labels == noisy_labels, 1, 2)
    left = torch.where(labels == noisy_labels, wrong, wrong - label_probs).clamp(min=0)  # but for rounding it is
    share = left / (num_classes - known).clamp(min=1)
    found = share[:, None].repeat(1, num_classes)
    found.scatter_(1, labels[:, None], label_probs[:, None])
    found.scatter_(1, noisy_labels[:, None], (1 - wrong)[:, None])
    return found / found.sum(dim=1, keepdim=True)


_DTYPES = {
    "index": torch.int64,
    "noisy_labels": torch.int64,
    "wrong": torch.float64,
    "labels": torch.int64,
    "label_probs": torch.float64,
}
