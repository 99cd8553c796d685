"""An audit as one page to look through: filters, pictures or texts, and marks to download; no network, no server."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.audit.table import AuditTable
from noisylightning.errors import BadValue
from noisylightning.functional.audit import ExpectedErrors

Thumbnails: TypeAlias = Callable[[Tensor], Iterable[bytes]]
"""From places in the training data, int64 of shape ``(M,)``, to their M pictures in that order, each a PNG or JPEG."""

THUMBNAIL_BYTES = 32 * 2**20
"""Bytes of pictures that a page holds without being asked: 60,000 of MNIST, some 30,000 of CIFAR-10's size."""

_TEMPLATE = Path(__file__).with_name("page.html")
_MAX_PAIRS = 400  # all that a table of 20 classes has, and the most frequent of more
_MAX_CLASSES = 2**15  # one character in the browser's storage holds a mark and a class


def write_page(
    table: AuditTable,
    path: str | Path,
    *,
    title: str = "Audit of the labels",
    errors: ExpectedErrors | None = None,
    thumbnails: Thumbnails | None = None,
    thumbnail_bytes: int = THUMBNAIL_BYTES,
) -> None:
    """Write one HTML file in which to look at the labels that are probably wrong, and to mark what shall become of them.

    The file needs no network and no server. It shows pictures where there are ``thumbnails``, else the table's
    ``samples`` as texts, the most probably wrong first. The marks (keep, relabel, drop) stay in the browser under a
    checksum of the labels, and download as ``audit_marked.csv``: all rows of ``audit.csv`` and a column ``mark``. Where
    somebody chose another label than the most probable, ``label`` is that one, and ``wrong`` and ``label_prob`` are 1.
    Texts that a spreadsheet would take for a formula begin with an apostrophe there.

    Args:
        table: The audit's table.
        path: The ``.html`` file.
        title: Heading of the page.
        errors: Expected numbers of wrong labels, with intervals; None shows sums over the table, without.
        thumbnails: Makes pictures, of the rows most probably wrong first, see :func:`thumbnails_of`; None for texts.
        thumbnail_bytes: Where the pictures would take more than this together, further rows show their ``samples``.

    Raises:
        ValueError: If the path ends otherwise, a picture is neither PNG nor JPEG, there are fewer pictures than rows,
            ``errors`` is of another number of classes, or there are more than 32,768 classes.

    Example:
        >>> import tempfile
        >>> table = AuditTable.from_probs(torch.tensor([[0.1, 0.9], [0.6, 0.4]]), torch.tensor([0, 1]), ["cat", "dog"])
        >>> path = Path(tempfile.mkdtemp()) / "audit.html"
        >>> write_page(table, path, title="Pets")
        >>> "<title>Pets</title>" in path.read_text()
        True
    """
    path = Path(path)
    if path.suffix != ".html":
        raise BadValue(f"The page of an audit is an .html file, got {path}.")
    if table.num_classes > _MAX_CLASSES:
        raise BadValue(f"A page can mark at most {_MAX_CLASSES:,} classes, got {table.num_classes:,}: use audit.csv.")
    if errors is not None and errors.pairs.shape != (table.num_classes, table.num_classes):
        raise BadValue(
            f"errors are of {len(errors.pairs)} classes and the table is of {table.num_classes}: give both of one audit."
        )
    data = json_in_html(_data(table, title, errors))
    pictures = json_in_html([] if thumbnails is None else _pictures(table, thumbnails, thumbnail_bytes))
    with written_whole(path) as temporary:
        temporary.write_text(_filled(title=html.escape(title), data=data, thumbnails=pictures), encoding="utf-8")


def json_in_html(value: Any) -> str:
    r"""Write JSON that can stand in a ``<script>`` element whatever strings it holds, in ASCII alone.

    Args:
        value: What ``json`` can write.

    Returns:
        JSON without ``<``, ``>`` and ``&``, which are written by their numbers.

    Example:
        >>> print(json_in_html("</script>"))
        "\u003c/script\u003e"
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&"})


def _filled(**contents: str) -> str:
    template = _TEMPLATE.read_text(encoding="utf-8")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Whatever a sample says, the browser runs this one script and fetches nothing.
    contents["policy"] = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    return re.sub(r"\{\{(\w+)\}\}", lambda place: contents[place[1]], template)


def _data(table: AuditTable, title: str, errors: ExpectedErrors | None) -> dict[str, Any]:
    order = table.ranked
    return {
        "title": title,
        "checksum": _checksum(table),
        "classNames": table.class_names,
        "named": table.class_names != tuple(map(str, range(table.num_classes))),
        "index": _column(table.index[order], "<f8"),  # exact up to 2^53
        "noisyLabels": _column(table.noisy_labels[order], "<i4"),
        "wrong": _column(table.wrong[order], "<f8"),
        "labels": _column(table.labels[order], "<i4"),
        "labelProbs": _column(table.label_probs[order], "<f8"),
        "samples": None if table.samples is None else [table.samples[row] for row in order.tolist()],
        "total": None if errors is None else [errors.total, errors.low, errors.high],
        "pairs": _pairs(table, errors),
    }


def _column(values: Tensor, dtype: str) -> str:
    return base64.b64encode(values.cpu().numpy().astype(dtype).tobytes()).decode()


def _checksum(table: AuditTable) -> str:
    """SHA-256 of the places, the given labels and the classes: what marks belong to, whatever found the errors."""
    digest = hashlib.sha256(json.dumps(table.class_names).encode())
    for values in (table.index, table.noisy_labels):
        digest.update(values.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _pairs(table: AuditTable, errors: ExpectedErrors | None) -> list[list[float | None]]:
    """The most frequent pairs of different classes: given label, other label, how many, and the interval."""
    C = table.num_classes
    if errors is None:
        counts = (table.noisy_labels * C + table.labels).bincount(minlength=C * C).view(C, C).t().double()
    else:
        counts = errors.pairs
    off_diagonal = counts.clone().fill_diagonal_(0)
    found: list[list[float | None]] = []
    for place in off_diagonal.flatten().argsort(descending=True, stable=True)[:_MAX_PAIRS].tolist():
        clean, noisy = divmod(place, C)
        if off_diagonal[clean, noisy] > 0:
            bounds = (None, None)
            if errors is not None:
                bounds = (float(errors.pairs_low[clean, noisy]), float(errors.pairs_high[clean, noisy]))
            found.append([noisy, clean, float(counts[clean, noisy]), *bounds])
    return found


def _pictures(table: AuditTable, thumbnails: Thumbnails, most: int) -> list[str]:
    """Pictures of the first rows by rank, in base64, as many as may be."""
    places = table.index[table.ranked]
    found: list[str] = []
    taken = 0
    for picture in thumbnails(places):
        if len(found) == len(places):
            raise BadValue(f"There are more pictures than the {len(places)} places asked for: make one a place.")
        if not picture.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            raise BadValue(
                f"The picture of sample {int(places[len(found)])} is neither PNG nor JPEG: give one of them."
            )
        taken += len(picture)
        if taken > most:
            return found
        found.append(base64.b64encode(picture).decode())
    if len(found) < len(places):
        raise BadValue(f"There are {len(found)} pictures of {len(places)} samples: make one for each place asked for.")
    return found
