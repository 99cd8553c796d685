"""T-hat as files: numbers to load again, a table to read, a picture to look at."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.plotting import compare_transitions


def publish_transition(
    transition: Tensor,
    true: Tensor | None,
    folder: str | Path,
    loggers: Iterable[Any] = (),
    step: int = 0,
    class_names: Sequence[str] | None = None,
    standard_error: Tensor | None = None,
) -> None:
    """Save T-hat as ``transition.npy``, ``.csv`` and ``.png``, and send the picture to loggers that take one.

    A sparse T-hat, of too many classes for table and picture, is saved as ``transition.npz`` alone.

    :func:`~noisylightning.transition.load_transition` reads the ``.npy``, the ``.npz`` and the ``.csv``, in which
    classes that have names are named: the noisy ones in the first row, the clean ones in the first column.

    Args:
        transition: T-hat of shape ``(C, C)``, dense or sparse.
        true: The true T, drawn beside it; None where it is not known.
        folder: Where the files go.
        loggers: Lightning loggers; those of TensorBoard and Weights & Biases kind get the picture.
        step: The step that the loggers file it under.
        class_names: The C names.
        standard_error: That of each entry, ``(C, C)``, saved as ``transition_standard_error.npy``; None for none.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> publish_transition(torch.eye(2), None, folder)
        >>> sorted(path.name for path in folder.iterdir())
        ['transition.csv', 'transition.npy', 'transition.png']
    """
    folder = Path(folder)
    if transition.layout != torch.strided:
        save_sparse(transition, folder / "transition.npz")
        return
    values = transition.cpu().numpy()
    with written_whole(folder / "transition.npy") as path:
        np.save(path, values, allow_pickle=False)
    if standard_error is not None:
        with written_whole(folder / "transition_standard_error.npy") as path:
            np.save(path, standard_error.cpu().numpy(), allow_pickle=False)
    with written_whole(folder / "transition.csv") as path:
        path.write_text(_table(values, class_names), encoding="utf-8")
    figure = compare_transitions(transition, true, standard_error=standard_error, class_names=class_names)
    with written_whole(folder / "transition.png") as path:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image("transition", [str(folder / "transition.png")], step=step)
        elif hasattr(getattr(logger, "experiment", None), "add_figure"):
            logger.experiment.add_figure("transition", figure, step)


def save_sparse(transition: Tensor, path: Path) -> None:
    """Write a sparse T as a ``.npz`` file of :mod:`scipy.sparse`.

    Args:
        transition: T, ``(C, C)``, in any sparse layout of torch.
        path: The file, whose name ends in ``.npz``.
    """
    from scipy.sparse import coo_matrix, save_npz  # type: ignore[import-untyped]  # takes long, and few need it

    entries = transition.cpu().to_sparse(layout=torch.sparse_coo).coalesce()
    matrix = coo_matrix((entries.values().numpy(), entries.indices().numpy()), shape=tuple(entries.shape))
    with written_whole(path) as temporary:
        save_npz(temporary, matrix)


def _table(values: NDArray[Any], class_names: Sequence[str] | None) -> str:
    rows = [[f"{value:.9g}" for value in row] for row in values]  # nine digits tell all of float32 apart
    if class_names:
        header = ["clean \\ noisy", *class_names]
        rows = [header, *([name, *row] for name, row in zip(class_names, rows, strict=True))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
