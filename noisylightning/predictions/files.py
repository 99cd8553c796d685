"""Tables of many rows on the disk: an array (``.npz``) or a column (``.parquet``) for each name.

They are written a part of the rows at a time, and of a ``.npz`` that is not compressed large arrays are mapped, not
read: neither has to fit into memory.
"""

import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from noisylightning.atomic import written_whole
from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage

Rows = Mapping[str, np.ndarray]
"""Arrays by name, all of the same length."""

_MAPPED = 2**24  # bytes; smaller arrays are read


def check_suffix(path: str | Path) -> Path:
    """Return the path, or raise unless it ends in ``.npz`` or ``.parquet`` and can be written and read here."""
    path = Path(path)
    if path.suffix not in (".npz", ".parquet"):
        raise BadValue(f"A file of predictions ends in .npz or .parquet, got {path}.")
    if path.suffix == ".parquet":
        _pyarrow(path)
    return path


def write_rows(path: str | Path, parts: Iterable[Rows], class_names: Sequence[str] | None = None) -> None:
    """Write rows to a file that is either whole or not there.

    Args:
        path: The ``.npz`` or ``.parquet`` file.
        parts: The rows, some at a time; each part has the same names, and arrays of the same dtype and width.
        class_names: Names of the classes, kept beside them.

    Raises:
        ValueError: If the path ends otherwise.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "rows.npz"
        >>> write_rows(path, [{"x": np.zeros((2, 3))}, {"x": np.ones((1, 3))}])
        >>> read_rows(path)[0]["x"].sum(axis=1)
        array([0., 0., 3.])
    """
    write = {".npz": _write_npz, ".parquet": _write_parquet}[check_suffix(path).suffix]
    with written_whole(path) as temporary:
        write(temporary, parts, class_names)


def read_rows(path: str | Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """Read what :func:`write_rows` wrote, or numpy or pyarrow elsewhere.

    Args:
        path: The ``.npz`` or ``.parquet`` file.

    Returns:
        The arrays by name, and the class names where the file holds them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the path ends otherwise, or the file is damaged.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    path = check_suffix(path)
    if not path.is_file():
        raise NoSuchFile(f"There is no file {path}: correct the path of the predictions.")
    return (_read_npz if path.suffix == ".npz" else _read_parquet)(path)


def _write_npz(path: Path, parts: Iterable[Rows], class_names: Sequence[str] | None) -> None:
    # The members of a zip file come one after the other, so each array grows in a file of its own at first.
    heads: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, zipfile.ZipFile(path, "w") as archive:
        for part in parts:
            for place, (name, array) in enumerate(part.items()):
                num = heads[name][1][0] if name in heads else 0
                heads[name] = array.dtype, (num + len(array), *array.shape[1:])
                with Path(folder, str(place)).open("ab") as file:
                    file.write(array.tobytes())
        for place, (name, (dtype, shape)) in enumerate(heads.items()):
            with (
                archive.open(f"{name}.npy", "w", force_zip64=True) as member,
                Path(folder, str(place)).open("rb") as file,
            ):
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(member, header)
                shutil.copyfileobj(file, member, 2**20)
        if class_names is not None:
            with archive.open("class_names.npy", "w") as member:
                np.lib.format.write_array(member, np.array(class_names, dtype=np.str_), allow_pickle=False)


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.compress_type == zipfile.ZIP_STORED and member.file_size >= _MAPPED:
                    arrays[name] = _map(path, file, member.header_offset)
                else:
                    with archive.open(member) as stream:
                        arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, struct.error) as error:
        raise BadValue(f"{path} is no .npz file of plain arrays ({error}): write it again.") from error
    names = arrays.pop("class_names", None)
    return arrays, None if names is None else [str(name) for name in names]


def _map(path: Path, file: BinaryIO, offset: int) -> np.ndarray:
    """Map the array that begins, with its zip header, at ``offset``."""
    file.seek(offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)  # past the member's name and extra field
    old = np.lib.format.read_magic(file) == (1, 0)
    shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    # Copied on writing: torch takes no array that is read-only.
    return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise NoSuchPackage(
            f"{path} is Parquet, which needs pyarrow: pip install 'noisylightning[parquet]', or name a file .npz."
        ) from None
    return pyarrow


def _write_parquet(path: Path, parts: Iterable[Rows], class_names: Sequence[str] | None) -> None:
    pa = _pyarrow(path)
    metadata = None if class_names is None else {"class_names": json.dumps(list(class_names))}

    def column(array: np.ndarray) -> Any:
        flat = pa.array(array.reshape(-1))
        return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])

    with ExitStack() as stack:
        writer = None
        for part in parts:
            table = pa.table({name: column(array) for name, array in part.items()}).replace_schema_metadata(metadata)
            writer = writer or stack.enter_context(pa.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
    pa = _pyarrow(path)
    try:
        table = pa.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadValue(f"{path} is truncated or no Parquet ({error}): write it again.") from error
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        values, shape = column, [len(column)]
        if pa.types.is_fixed_size_list(column.type):
            values, shape = column.flatten(), [len(column), column.type.list_size]
        elif pa.types.is_list(column.type):
            values, lengths = column.flatten(), pa.compute.list_value_length(column).unique()
            if len(lengths) > 1:
                raise BadValue(f"{path} has lists of different lengths in column {name!r}: give each row as many.")
            shape = [len(column), lengths[0].as_py() if len(lengths) else 0]
        if column.null_count or values.null_count:
            raise BadValue(f"{path} has empty fields in column {name!r}: fill them in or leave the rows out.")
        arrays[name] = values.to_numpy(zero_copy_only=False).reshape(shape)
    names = (table.schema.metadata or {}).get(b"class_names")
    return arrays, None if names is None else [str(name) for name in json.loads(names)]
