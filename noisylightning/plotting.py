"""Pictures of T."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NUMBERED = 20
_MAX_NAMED = 40


def draw_transition(
    transition: Tensor, *, ax: Any = None, class_names: Sequence[str] | None = None, title: str | None = None
) -> tuple["Figure", "Axes"]:
    """Draw T, or any matrix of probabilities, as a heat map.

    Args:
        transition: T of shape ``(C, C)``; row: clean class, column: noisy class.
        ax: Matplotlib axes to draw on; new ones where they are left out.
        class_names: The C names; their numbers where they are left out.
        title: A title over the picture.

    Returns:
        The figure and its axes.

    Example:
        >>> figure, axes = draw_transition(torch.eye(3), class_names=["cat", "dog", "fox"])
        >>> axes.get_xlabel()
        'noisy label'
    """
    from matplotlib.figure import Figure  # here: imported by every process, used by one, once

    num_classes = len(transition)
    if ax is None:
        # A bare Figure: nothing is registered with pyplot, so nothing leaks and no window opens.
        side = min(3.2 + 0.32 * num_classes, 12.0)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        ax = figure.add_subplot()
    else:
        figure = ax.figure
    values = transition.detach().to("cpu", torch.float64).numpy()
    image = ax.imshow(values, vmin=0.0, vmax=1.0, cmap="Blues")
    ax.set_xlabel("noisy label")
    ax.set_ylabel("clean class")
    if title:
        ax.set_title(title)
    if num_classes <= _MAX_NAMED:
        names = list(class_names) if class_names else [str(i) for i in range(num_classes)]
        crowded = max(map(len, names)) > 3
        ax.set_xticks(range(num_classes), names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
        ax.set_yticks(range(num_classes), names)
    if num_classes <= _MAX_NUMBERED:
        for i in range(num_classes):
            for j in range(num_classes):
                if values[i, j] >= 0.005:
                    shade = "white" if values[i, j] > 0.55 else "black"
                    text = f"{values[i, j]:.2f}".removeprefix("0")
                    ax.text(j, i, text, ha="center", va="center", color=shade, fontsize=7)
    figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    return figure, ax


def compare_transitions(
    estimate: Tensor, true: Tensor, *, class_names: Sequence[str] | None = None, title: str | None = None
) -> "Figure":
    """Draw T-hat beside the true T.

    Args:
        estimate: T-hat of shape ``(C, C)``.
        true: The true T of shape ``(C, C)``.
        class_names: The C names.
        title: A title over both.

    Returns:
        The figure.

    Example:
        >>> compare_transitions(torch.eye(2), torch.eye(2)).axes[0].get_title()
        'estimated'
    """
    from matplotlib.figure import Figure

    side = min(3.2 + 0.32 * len(true), 12.0)
    figure = Figure(figsize=(2 * side + 1.0, side), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_transition(estimate, ax=left, class_names=class_names, title="estimated")
    draw_transition(true, ax=right, class_names=class_names, title="true")
    if title:
        figure.suptitle(title)
    return figure
