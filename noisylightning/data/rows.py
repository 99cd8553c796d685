"""Reading tables row by row and lists line by line; every fault is one sentence that names the file and the line."""

import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage

_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open}


def read_rows(
    path: Path, columns: Mapping[str, str | None], option: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Read a table row by row: CSV, TSV or JSON Lines, plain or compressed (``.gz``, ``.xz``), or Parquet.

    Args:
        path: The file, of which the suffix tells the format.
        columns: The columns that every row must have, each with the data module's argument that names it, for the
            error; None where none does.
        option: The data module's argument that names the file, for the error; None where none does.

    Yields:
        The line on which a row ends, counted from 1 (of Parquet the row), and its fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is unknown, the file is damaged, truncated or not UTF-8, or a column is missing.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = path.write_text("text,stars\na fine film,5\n")
        >>> list(read_rows(path, {"stars": "label_column"}))
        [(2, {'text': 'a fine film', 'stars': '5'})]
    """
    if not path.is_file():
        mend = f"set {option} (--data.{option}) to one that is there" if option else "correct the path"
        raise NoSuchFile(f"There is no file {path}; {mend}.")
    for line, row in _parquet_rows(path) if path.suffix == ".parquet" else _text_rows(path):
        for column, option in columns.items():
            if column not in row:
                mend = f"set {option} (--data.{option}) to what is there" if option else "fetch it again"
                found = ", ".join(map(str, row)) or "none"
                raise BadValue(f"{path}, line {line}, has no column {column!r} (it has {found}); {mend}.")
            if row[column] is None:
                raise BadValue(f"{path}, line {line}, has nothing in column {column!r}; fill it in or remove the line.")
        yield line, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise NoSuchPackage(
            f"{path} is Parquet, which needs pyarrow: pip install 'noisylightning[parquet]', or save it as CSV."
        ) from None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadValue(f"{path} is truncated or no Parquet ({error}): write it again.") from error
    for line, row in enumerate(table.to_pylist(), start=1):
        yield line, {column: "" if value is None else value for column, value in row.items()}  # blank, as in CSV


def _text_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise BadValue(f"{path} must end in .csv, .tsv or .jsonl, perhaps followed by .gz or .xz, or in .parquet.")
    line = 0
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            for line, row in _json_rows(file) if kind == ".jsonl" else _csv_rows(file, "\t" if kind == ".tsv" else ","):
                if None in row:
                    raise BadValue(
                        f"{path}, line {line}, has more fields than the first line names; put quotes around a field "
                        "that holds the separator."
                    )
                yield line, row
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (line {line + 1} or soon after: {error}); convert it.") from error
    except (csv.Error, json.JSONDecodeError) as error:
        raise BadValue(f"{path} cannot be read after line {line} ({error}); correct it.") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise BadValue(f"{path} is truncated or damaged ({error}); fetch it again.") from error


def _csv_rows(file: IO[str], delimiter: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    for row in reader:
        yield reader.line_num, row


def _json_rows(file: IO[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    for line, text in enumerate(file, start=1):
        row = json.loads(text)
        yield line, row if isinstance(row, dict) else {}


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
        raise NoSuchFile(f"There is no list {path}; correct the path.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (byte {error.start}); convert it.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise BadValue(f"{path} is empty; fetch it again or correct the path.")
    return lines
