"""Reading texts and their labels from files; every fault is one sentence that names the file and the line."""

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from noisylightning.errors import BadValue, NoSuchFile

_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}


def read_text(path: Path) -> str:
    """Read one UTF-8 file that holds one text.

    Args:
        path: The file.

    Returns:
        The text.

    Raises:
        ValueError: If the file is not UTF-8 or blank.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (byte {error.start}); convert it.") from error
    return checked_text(text, str(path))


def checked_text(text: Any, where: str) -> str:
    """Check that something read is a text and not empty.

    Args:
        text: What was read.
        where: Where it stands, for the error.

    Returns:
        The text.

    Raises:
        ValueError: If it is no text or blank.
    """
    if not isinstance(text, str):
        raise BadValue(f"{where} has {text!r} for a text; give a string.")
    if not text.strip():
        raise BadValue(f"{where} has an empty text; remove it or restore its words.")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a list that are not blank, with their numbers from 1.

    Args:
        path: A UTF-8 file.

    Returns:
        Line numbers and lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8 or has no line.
    """
    if not path.is_file():
        raise NoSuchFile(f"no list {path}: correct the path.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (byte {error.start}): convert it.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise BadValue(f"{path} is empty: fetch it again or correct the path.")
    return lines


def read_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table of CSV, TSV or JSON Lines, plain or compressed (``.gz``, ``.xz``), row by row.

    Args:
        path: The file, of which the suffix tells the format.
        columns: The columns that every row must have.

    Yields:
        The line on which a row ends, counted from 1, and its fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is unknown, the file is damaged, truncated or not UTF-8, or a column is missing.
    """
    if not path.is_file():
        raise NoSuchFile(f"There is no file {path}; correct the path.")
    kind = path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise BadValue(f"{path} must end in .csv, .tsv or .jsonl, perhaps followed by .gz or .xz.")
    line = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(file) if kind == ".jsonl" else _csv_rows(file, "\t" if kind == ".tsv" else ",")
            for line, row in rows:
                for column in columns:
                    if column not in row:
                        raise _Fault(
                            f"line {line}, has no column {column!r} (it has {', '.join(map(str, row)) or 'none'}); "
                            "name one that it has or add it"
                        )
                    if row[column] is None:
                        raise _Fault(f"line {line}, has nothing in column {column!r}; fill it in or remove the line")
                yield line, row
    except _Fault as fault:
        raise BadValue(f"{path}, {fault}.") from None
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (line {line + 1} or soon after: {error}); convert it.") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise BadValue(f"{path} cannot be read after line {line} ({error}); correct it.") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise BadValue(f"{path} is truncated or damaged ({error}); fetch it again.") from error


class _Fault(Exception):
    pass


def _csv_rows(file: IO[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    for row in reader:
        if None in row:
            raise _Fault(
                f"line {reader.line_num}, has more fields than the first line names; put quotes around a field that "
                "holds the separator"
            )
        yield reader.line_num, row


def _json_rows(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        row = json.loads(text)
        yield line, row if isinstance(row, dict) else {}


def names_of(labels: Sequence[str], where: str) -> list[str]:
    """The classes that labels name, in the order of their numbers.

    Args:
        labels: Class names or numbers, as text.
        where: Where the labels stand, for the error.

    Returns:
        Each of them once, numbers in the order of size, names in that of the alphabet.

    Raises:
        ValueError: If they name fewer than two classes.

    Example:
        >>> names_of(["10", "2", "2"], "here"), names_of(["dog", "cat", ""], "here")
        (['2', '10'], ['cat', 'dog'])
    """
    names = {label.strip() for label in labels} - {""}
    if len(names) < 2:
        found = f"only the class {names.pop()!r}" if names else "no class"
        raise BadValue(f"{where} names {found}; give samples of at least two classes.")
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def label_number(label: Any, class_names: Sequence[str], where: str) -> int:
    """The number of the class that a label names.

    Args:
        label: A class name or, where no class has that name, a class number.
        class_names: Names of the C classes.
        where: Where the label stands, for the error.

    Returns:
        The class number, 0 to C - 1.

    Raises:
        ValueError: If the label is blank or names no class.

    Example:
        >>> label_number("pos", ["neg", "pos"], "here"), label_number(0, ["neg", "pos"], "here")
        (1, 0)
    """
    name = str(label).strip()
    if not name:
        raise BadValue(f"{where} has no label; give one or remove the line.")
    if name in class_names:
        return list(class_names).index(name)
    if not isinstance(label, bool) and name.isdecimal() and int(name) < len(class_names):
        return int(name)
    raise BadValue(f"{where} has the label {label!r}, not among the classes {', '.join(class_names)}; correct it.")
