"""Pictures of T."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NUMBERED = 20
_MAX_NAMED = 40


def draw_transition(
    transition: Tensor,
    *,
    ax: Any = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    standard_error: Tensor | None = None,
) -> tuple["Figure", "Axes"]:
    """Draw T, or any matrix of probabilities, as a heat map.

    Args:
        transition: T of shape ``(C, C)``; row: clean class, column: noisy class.
        ax: Matplotlib axes to draw on; new ones where they are left out.
        class_names: The C names; their numbers where they are left out.
        title: A title over the picture.
        standard_error: That of each entry, ``(C, C)``, written small under its number.

    Returns:
        The figure and its axes.

    Example:
        >>> figure, axes = draw_transition(torch.eye(3), class_names=["cat", "dog", "fox"])
        >>> axes.get_xlabel()
        'noisy label'
    """
    from matplotlib.figure import Figure  # here: imported by every process, used by one, once

    if ax is None:
        # A bare Figure: nothing is registered with pyplot, so nothing leaks and no window opens.
        side = _side(len(transition))
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        ax = figure.add_subplot()
    values = _values(transition)
    under = None
    if standard_error is not None:
        errors = _values(standard_error)
        under = [[f"±{_short(error, 3)}" for error in row] for row in errors]
    written = [[_short(value, 2) if value >= 0.005 else "" for value in row] for row in values]
    _heat_map(ax, values, (0.0, 1.0), "Blues", written, under, class_names, title)
    return ax.figure, ax


def compare_transitions(
    estimate: Tensor,
    true: Tensor | None = None,
    *,
    standard_error: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw T-hat, and beside it what else is known: the true T, T-hat's standard error; of both also the difference.

    Args:
        estimate: T-hat of shape ``(C, C)``.
        true: The true T of shape ``(C, C)``.
        standard_error: That of each entry of T-hat, ``(C, C)``.
        class_names: The C names.
        title: A title over all.

    Returns:
        The figure, of one, two or four panels.

    Example:
        >>> figure = compare_transitions(torch.eye(2), torch.eye(2), standard_error=torch.zeros(2, 2))
        >>> [axes.get_title() for axes in figure.axes if axes.get_title()]
        ['estimated', 'true', 'standard error', 'estimated - true']
    """
    from matplotlib.figure import Figure

    rows, columns = (1, 1) if true is None is standard_error else (1, 2) if None in (true, standard_error) else (2, 2)
    side = _side(len(estimate)) if rows == 1 else min(_side(len(estimate)), 8.0)
    figure = Figure(figsize=(columns * (side + 0.6), rows * side), layout="constrained")
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    draw_transition(
        estimate, ax=next(panels), class_names=class_names, title="estimated", standard_error=standard_error
    )
    if true is not None:
        draw_transition(true, ax=next(panels), class_names=class_names, title="true")
    if standard_error is not None:
        errors = _values(standard_error)
        written = [[_short(error, 3) if error >= 0.0005 else "" for error in row] for row in errors]
        top = float(errors.max()) or 1.0
        _heat_map(next(panels), errors, (0.0, top), "Oranges", written, None, class_names, "standard error")
    if true is not None and standard_error is not None:
        difference = _values(estimate) - _values(true)
        written = [
            [f"{value:+.3f}".replace("0.", ".") if abs(value) >= 0.0005 else "" for value in row] for row in difference
        ]
        most = float(abs(difference).max()) or 1.0
        _heat_map(next(panels), difference, (-most, most), "RdBu", written, None, class_names, "estimated - true")
    if title:
        figure.suptitle(title)
    return figure


def _side(num_classes: int) -> float:
    return min(3.2 + 0.32 * num_classes, 12.0)


def _values(matrix: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = matrix.detach().to("cpu", torch.float64).numpy()
    return values


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def _heat_map(
    ax: Any,
    values: NDArray[np.float64],
    limits: tuple[float, float],
    colours: str,
    written: list[list[str]],
    under: list[list[str]] | None,
    class_names: Sequence[str] | None,
    title: str | None,
) -> None:
    """Draw values as colours; few enough of them also as what is written, with smaller writing under it."""
    size, (low, high) = len(values), limits
    image = ax.imshow(values, vmin=low, vmax=high, cmap=colours)
    ax.set_xlabel("noisy label")
    ax.set_ylabel("clean class")
    if title:
        ax.set_title(title)
    if size <= _MAX_NAMED:
        names = list(class_names) if class_names else [str(i) for i in range(size)]
        crowded = max(map(len, names)) > 3
        ax.set_xticks(range(size), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
        ax.set_yticks(range(size), names)
    if size <= _MAX_NUMBERED:
        for i in range(size):
            for j in range(size):
                if not written[i][j]:
                    continue
                style = {"ha": "center", "color": "white" if abs(values[i, j]) > 0.55 * high else "black"}
                if under is None:
                    ax.text(j, i, written[i][j], va="center", fontsize=7, **style)
                else:
                    ax.text(j, i, written[i][j], va="bottom", fontsize=7, **style)
                    ax.text(j, i + 0.08, under[i][j], va="top", fontsize=6, **style)
    ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
