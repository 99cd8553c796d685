"""Read T from a file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.transition.check import validate_transition


def load_transition(path: str | Path, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Read T from a ``.npy`` or a comma-separated ``.csv`` file, or a sparse one from a ``.npz`` file.

    A ``.csv`` file holds the C rows of T, or names its classes: then a first row ``,name,name,...`` goes before them,
    whose first cell is no number, and each row begins with its class's name. A ``.npz`` file is one of
    :func:`scipy.sparse.save_npz`, as a sparse T-hat is saved.

    Args:
        path: The file.
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(C, C)``; a sparse tensor from a ``.npz`` file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another kind of file, or a matrix that :func:`validate_transition` refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     print("0.9,0.1", "0.2,0.8", sep="\n", file=file, flush=True)
        ...     load_transition(file.name)
        tensor([[0.9000, 0.1000],
                [0.2000, 0.8000]])
    """
    path = Path(path)
    if path.suffix not in (".npy", ".csv", ".npz"):
        raise BadValue(f"a transition matrix is read from a .npy, .csv or .npz file, got {str(path)!r}.")
    if not path.is_file():
        raise NoSuchFile(f"no transition matrix at {str(path)!r}: check the path, or write T there first.")
    if path.suffix == ".npz":
        return _read_sparse(path, dtype or torch.get_default_dtype())
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_table(path)
        transition = torch.from_numpy(np.asarray(array, dtype=np.float64)).to(dtype or torch.get_default_dtype())
        validate_transition(transition)
    except (TypeError, ValueError) as error:
        raise BadValue(f"no transition matrix in {str(path)!r}: {error}") from None
    return transition


def _read_sparse(path: Path, dtype: torch.dtype) -> Tensor:
    from scipy.sparse import load_npz  # type: ignore[import-untyped]  # takes long, and few need it

    try:
        matrix = load_npz(path).tocoo()
        indices = torch.from_numpy(np.stack([matrix.row, matrix.col]).astype(np.int64))
        values = torch.from_numpy(matrix.data).to(dtype)
        return torch.sparse_coo_tensor(indices, values, matrix.shape, check_invariants=True).coalesce()
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise BadValue(f"no sparse transition matrix in {str(path)!r}: {error}") from None


def _read_table(path: Path) -> NDArray[np.float64]:
    text = path.read_text(encoding="utf-8-sig")
    if text.startswith("#") or _is_number(text.split(",")[0]):
        return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)
    header, *rows = csv.reader(line for line in text.splitlines() if line.strip())
    names = [row[0] for row in rows]
    if names != header[1:]:
        raise ValueError(f"its columns are named {', '.join(header[1:])}, but its rows {', '.join(names)}")
    return np.asarray([[float(cell) for cell in row[1:]] for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
