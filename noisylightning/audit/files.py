"""An audit's files: a table to read and to feed back, and the totals."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.audit.page import Thumbnails, write_page
from noisylightning.audit.table import AuditTable
from noisylightning.audit.tally import Audit
from noisylightning.errors import BadType, BadValue

MARKS = ("keep", "relabel", "drop")
"""What a person, or a tool, may say of a row in the column ``mark``."""

_PAIRS = 1000  # of classes that audit.json lists at most


def write_audit(audit: Audit, folder: str | Path, thumbnails: Thumbnails | None = None) -> None:
    """Write an audit's table, its totals, its page, and weights to train with.

    The tables, ``audit.csv`` and, where pyarrow is installed, ``audit.parquet``, begin with the label that is most
    probably wrong. ``audit.json`` has the totals, their intervals, the pairs of classes and a checksum of the labels;
    ``audit.html`` is for looking and marking, see :func:`write_page`; ``weights.npy`` has :meth:`sample_weights
    <noisylightning.audit.AuditTable.sample_weights>`.

    Args:
        audit: The audit.
        folder: Where the files go; it is made if it is not there.
        thumbnails: Makes the page's pictures, see :func:`thumbnails_of`; None for texts.

    Example:
        >>> import tempfile
        >>> from noisylightning.audit import audit_predictions
        >>> from noisylightning.predictions import Predictions
        >>> folder = Path(tempfile.mkdtemp())
        >>> found = audit_predictions(Predictions(torch.zeros(2, 2), torch.tensor([0, 1])), torch.full((2, 2), 0.5))
        >>> write_audit(found, folder)
        >>> (folder / "audit.csv").read_text().splitlines()[:2]
        ['index,sample,noisy_label,wrong,label,label_prob', '0,,0,0.5,0,0.5']
    """
    folder = Path(folder)
    write_table(audit.table, folder / "audit.csv")
    if importlib.util.find_spec("pyarrow"):
        write_table(audit.table, folder / "audit.parquet")
    with written_whole(folder / "weights.npy") as path, path.open("wb") as file:
        np.save(file, audit.table.sample_weights().numpy(), allow_pickle=False)
    with written_whole(folder / "audit.json") as path:
        path.write_text(json.dumps(_summary(audit), indent=2) + "\n", encoding="utf-8")
    write_page(audit.table, folder / "audit.html", errors=audit.errors, thumbnails=thumbnails)


def write_table(table: AuditTable, path: str | Path, marks: Sequence[str] | None = None) -> None:
    """Write an audit's table, the most probably wrong label first.

    Args:
        table: The table.
        path: A ``.csv`` or ``.parquet`` file.
        marks: For the column ``mark``: ``"keep"``, ``"relabel"``, ``"drop"`` or nothing for each row of the table.

    Raises:
        ValueError: If the path ends otherwise.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise BadValue(f"The table of an audit goes into a .csv or .parquet file, got {path}.")
    order = table.ranked
    columns = _columns(table, order)
    if marks is not None:
        columns["mark"] = [marks[row] for row in order.tolist()]
    with written_whole(path) as temporary:
        if path.suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(columns), temporary)


def _columns(table: AuditTable, order: Tensor) -> dict[str, list[Any]]:
    samples = [""] * len(table) if table.samples is None else [table.samples[row] for row in order.tolist()]
    columns: dict[str, list[Any]] = {
        "index": table.index[order].tolist(),
        "sample": samples,
        "noisy_label": table.noisy_labels[order].tolist(),
        "wrong": table.wrong[order].tolist(),
        "label": table.labels[order].tolist(),
        "label_prob": table.label_probs[order].tolist(),
    }
    if table.class_names != tuple(map(str, range(table.num_classes))):
        columns["noisy_name"] = [table.class_names[label] for label in columns["noisy_label"]]
        columns["name"] = [table.class_names[label] for label in columns["label"]]
    return columns


def _summary(audit: Audit) -> dict[str, Any]:
    table, errors = audit.table, audit.errors
    return {
        "samples": len(table),
        "expected_wrong": errors.total,
        "low": errors.low,
        "high": errors.high,
        "level": audit.level,
        "interval_covers": audit.covers,
        "held_out": audit.held_out,
        "clean_accuracy": _accuracy(audit),
        "classes": list(table.class_names),
        "labels_checksum": audit.labels_checksum,
        "pairs": [
            {
                "clean": table.class_names[clean],
                "noisy": table.class_names[noisy],
                "expected": float(errors.pairs[clean, noisy]),
                "low": float(errors.pairs_low[clean, noisy]),
                "high": float(errors.pairs_high[clean, noisy]),
            }
            for clean, noisy in pairs(audit, _PAIRS)
        ],
    }


def _accuracy(audit: Audit) -> dict[str, float] | None:
    if audit.clean_accuracy is None:
        return None
    low, high = audit.clean_accuracy.interval(audit.level)
    return {"value": float(audit.clean_accuracy.value), "low": float(low), "high": float(high)}


def pairs(audit: Audit, most: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs (clean, noisy) of different classes with the most wrong labels, the most frequent first.

    Args:
        audit: The audit.
        most: How many at most; pairs without any are left out.
    """
    numbers = audit.errors.pairs.clone().fill_diagonal_(0).flatten()
    found = numbers.argsort(descending=True, stable=True)[:most]
    for place in found[numbers[found] > 0].tolist():
        yield divmod(place, audit.table.num_classes)


def write_marks(table: AuditTable, issues: Any, path: str | Path, mark: str = "drop") -> None:
    """Mark some rows of a table, for ``--data.relabel``: those that another tool holds for wrong.

    Args:
        table: The table.
        issues: Those rows: their places in the table, or a mask of shape ``(N,)``, as cleanlab's ``find_label_issues``
            returns them; an array, a tensor or a list.
        path: The ``.csv`` or ``.parquet`` file.
        mark: What they are marked: ``"drop"`` or ``"relabel"``; all others are marked ``"keep"``.

    Raises:
        TypeError: If the issues are neither integers nor a mask.
        ValueError: If a place is outside the table or comes twice, a mask is of another length, or the mark is none.

    Example:
        >>> import tempfile
        >>> table = AuditTable.from_probs(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([0, 1]))
        >>> path = Path(tempfile.mkdtemp()) / "drop.csv"
        >>> write_marks(table, [0], path)
        >>> [line.split(",")[-1] for line in path.read_text().splitlines()]
        ['mark', 'drop', 'keep']
    """
    if mark not in ("drop", "relabel"):
        raise BadValue(f"Rows can be marked 'drop' or 'relabel', got {mark!r}.")
    chosen = torch.as_tensor(np.asarray(issues))
    if not chosen.numel():
        chosen = chosen.long()
    if chosen.dtype == torch.bool:
        if chosen.shape != (len(table),):
            raise BadValue(f"A mask must be of shape ({len(table)},), one entry a row, got {tuple(chosen.shape)}.")
        chosen = chosen.nonzero().flatten()
    if chosen.is_floating_point() or chosen.ndim != 1:
        raise BadType(f"Issues must be places of rows, integers, or a mask, got {chosen.dtype} of {chosen.ndim} axes.")
    outside = chosen[(chosen < 0) | (chosen >= len(table))]
    if len(outside):
        raise BadValue(f"There is no row {int(outside[0])} in a table of {len(table)}: give places from 0.")
    if len(chosen.unique()) < len(chosen):
        raise BadValue("A row comes twice among the issues: give each once.")
    marks = ["keep"] * len(table)
    for row in chosen.tolist():
        marks[row] = mark
    write_table(table, path, marks)
