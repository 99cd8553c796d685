"""Training labels as an audit corrects them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from noisylightning.audit.files import MARKS
from noisylightning.audit.table import soft_labels
from noisylightning.data.rows import read_rows
from noisylightning.errors import BadValue

_COLUMNS = ("index", "noisy_label", "wrong", "label", "label_prob")
_DEFAULT_THRESHOLD = {"relabel": 0.5, "drop": 0.5, "soft": 0.0}


@dataclass(frozen=True)
class TrainingLabels:
    """What training reads in the place of the given labels.

    Attributes:
        labels: Labels of all N samples: class indices ``(N,)``, or probabilities ``(N, C)``; those that do not train as
            they were.
        index: The samples that train, in order.
        dropped: Those that were to train and do not.
        changed: How many of those that train have another label than the given one.
    """

    labels: Tensor
    index: Tensor
    dropped: Tensor
    changed: int

    @property
    def checksum(self) -> str:
        """SHA-256 of index and labels, by which a resumed fit knows them again."""
        content = hashlib.sha256(self.index.cpu().numpy().astype("<i8").tobytes())
        labels = self.labels[self.index].cpu().numpy()
        content.update(labels.astype("<f4" if self.labels.is_floating_point() else "<i8").tobytes())
        return content.hexdigest()


@dataclass(frozen=True)
class Relabel:
    """Train on labels that an audit has corrected, see ``noisylightning audit``.

    A row's ``mark``, where there is one, decides: ``keep`` leaves the given label, ``relabel`` puts the most probable
    one in its place, ``drop`` takes the sample out of the training set. A row without is treated as ``how`` says, if
    its label is wrong with at least the probability ``threshold``. Only training labels change.

    Args:
        file: The audit's ``audit.csv`` or ``audit.parquet``, or what its page has downloaded.
        how: ``"relabel"``, to the most probable label; ``"soft"``, to probabilities of the labels, for a loss that
            takes them; or ``"drop"``.
        threshold: Probability in [0, 1]; by default 0.5, and 0 for ``"soft"``.

    Raises:
        ValueError: If ``how`` is none of these, or the threshold outside [0, 1].

    Example:
        >>> Relabel("audit/audit.csv", how="drop", threshold=0.9).least
        0.9
    """

    file: str | Path
    how: Literal["relabel", "soft", "drop"] = "relabel"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.how not in _DEFAULT_THRESHOLD:
            raise BadValue(
                f"how must be one of {', '.join(map(repr, _DEFAULT_THRESHOLD))}, got {self.how!r}: set how"
                " (--data.relabel.how)."
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise BadValue(
                f"threshold must be a probability in [0, 1], got {self.threshold}: set threshold"
                " (--data.relabel.threshold)."
            )

    @property
    def least(self) -> float:
        """The probability of being wrong from which on ``how`` holds."""
        return _DEFAULT_THRESHOLD[self.how] if self.threshold is None else self.threshold

    def apply(
        self, labels: Tensor, train_index: Tensor, num_classes: int, sample_names: Sequence[str] | None = None
    ) -> TrainingLabels:
        """Correct the labels of the training samples.

        Args:
            labels: The given labels of all N samples, int64, shape ``(N,)``.
            train_index: Places of the training samples, in order.
            num_classes: Number of classes C.
            sample_names: File name or text of each of the N samples, which the file's must be; None where not known.

        Returns:
            What training reads.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is of other data, lacks a training sample or has one twice, or holds a mark, label or
                probability that is none; or if no sample is left.
        """
        if labels.is_floating_point():
            raise BadValue("The labels are probabilities, which no audit corrects: leave relabel (--data.relabel) out.")
        table, marks = self._read(labels, num_classes, sample_names)
        row_of = torch.full((len(labels),), -1)
        row_of[table["index"]] = torch.arange(len(marks))
        rows = row_of[train_index]
        without = train_index[rows < 0]
        if len(without):
            raise BadValue(
                f"{self.file} has no row for sample {int(without[0])}, nor for {len(without) - 1} others that train:"
                " audit all of this data, or set relabel (--data.relabel) to another file."
            )
        mark = torch.tensor([MARKS.index(mark) if mark else -1 for mark in marks])[rows]
        relabel, drop = (mark == MARKS.index(name) for name in ("relabel", "drop"))
        by_rule = (mark < 0) & (table["wrong"] >= self.least)[rows]
        relabel |= by_rule & (self.how == "relabel")
        drop |= by_rule & (self.how == "drop")
        found = labels.clone()
        found[train_index[relabel]] = table["label"][rows[relabel]]
        if self.how == "soft":
            found = torch.nn.functional.one_hot(found, num_classes).to(torch.get_default_dtype())
            soft = rows[by_rule]
            probs = soft_labels(
                table["noisy_label"][soft],
                table["wrong"][soft],
                table["label"][soft],
                table["label_prob"][soft],
                num_classes,
            )
            found[train_index[by_rule]] = probs.to(found.dtype)
        index, dropped = train_index[~drop], train_index[drop]
        if not len(index):
            raise BadValue(
                f"{self.file} leaves no sample to train on: raise threshold={self.least} (--data.relabel.threshold)."
            )
        changed = by_rule if self.how == "soft" else labels[train_index] != found[train_index]
        return TrainingLabels(found, index, dropped, int((changed | relabel)[~drop].sum()))

    def _read(
        self, labels: Tensor, num_classes: int, sample_names: Sequence[str] | None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Read the file's columns and marks, checked against the data."""
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        marks: list[str] = []
        given, seen = labels.tolist(), bytearray(len(labels))
        mend = "set relabel (--data.relabel) to an audit of this data"
        for line, row in read_rows(Path(self.file), dict.fromkeys(_COLUMNS, "relabel"), "relabel"):
            where = f"{self.file}, line {line},"
            index, noisy, label = (self._whole(row, name, where) for name in ("index", "noisy_label", "label"))
            if not 0 <= index < len(given):
                raise BadValue(f"{where} is on sample {index}, but there are {len(given)} samples: {mend}.")
            if seen[index]:
                raise BadValue(f"{where} is on sample {index}, which has a row already: leave one of them out.")
            seen[index] = True
            if noisy != given[index]:
                raise BadValue(
                    f"{where} says that sample {index} is labelled {noisy}, but in this data it is {given[index]}:"
                    f" {mend}, with the same noise."
                )
            named = row.get("sample")
            # An audit's page puts an apostrophe before what a spreadsheet would take for a formula.
            if sample_names is not None and named and named not in (sample_names[index], f"'{sample_names[index]}"):
                raise BadValue(
                    f"{where} says that sample {index} is {named!r}, but in this data it is {sample_names[index]!r}:"
                    f" {mend}."
                )
            if not 0 <= label < num_classes:
                raise BadValue(
                    f"{where} has the label {label}, but classes are 0 to {num_classes - 1}: correct it, or {mend}."
                )
            mark = str(row.get("mark") or "").strip()
            if mark and mark not in MARKS:
                raise BadValue(f"{where} has the mark {mark!r}, which is none of {', '.join(MARKS)}: correct it.")
            for name, value in (("index", index), ("noisy_label", noisy), ("label", label)):
                columns[name].append(value)
            for name in ("wrong", "label_prob"):
                columns[name].append(self._probability(row, name, where))
            marks.append(mark)
        if not marks:
            raise BadValue(f"{self.file} has no row: {mend}.")
        return {name: torch.tensor(values) if name in ("index", "noisy_label", "label")
                else torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}, marks  # fmt: skip

    @staticmethod
    def _whole(row: dict[str, Any], name: str, where: str) -> int:
        try:
            return int(str(row[name]))
        except ValueError:
            raise BadValue(f"{where} has {row[name]!r} for {name}, not a whole number: correct it.") from None

    @staticmethod
    def _probability(row: dict[str, Any], name: str, where: str) -> float:
        try:
            value = float(row[name])
        except ValueError:
            value = -1
        if not 0 <= value <= 1:
            raise BadValue(f"{where} has {row[name]!r} for {name}, not a probability in [0, 1]: correct it.")
        return value
