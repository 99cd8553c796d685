"""What every estimator of T shares: a metric fed with predictions and noisy labels that computes T-hat."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from noisylightning.errors import BadType, BadValue
from noisylightning.plotting import draw_transition


class TransitionEstimator(Metric):
    """Base class of the estimators of T, T[i, j] = p(noisy = j | clean = i).

    An estimator is a :class:`torchmetrics.Metric`: feed it batch by batch, on one process or on many, and ``compute``
    gives the same T-hat. Subclasses write :meth:`_accumulate` and ``compute``; the checks of the input are done here.

    Args:
        num_classes: Number of classes C, at least 2.
        **kwargs: Passed on to :class:`torchmetrics.Metric` (``compute_on_cpu=True`` keeps large states off the GPU, for
            one process: NCCL gathers from GPUs).

    Raises:
        ValueError: If ``num_classes`` is below 2.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    class_counts: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise BadValue(f"num_classes must be at least 2, got {num_classes}.")
        self.num_classes = num_classes
        self.add_state("class_counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probs: Tensor, noisy_labels: Tensor) -> None:
        """Take in one batch.

        Args:
            probs: Predicted noisy posterior p(noisy | x), shape ``(N, C)``, rows sum to one.
            noisy_labels: Labels as they are written down, integers of shape ``(N,)``.

        Raises:
            TypeError: If the labels are not integers or the probabilities not floating point.
            ValueError: If a shape, a label or a probability is out of bounds.
        """
        self._check(probs, noisy_labels)
        probs = probs.detach()
        if probs.dtype in (torch.float16, torch.bfloat16):
            probs = probs.float()
        noisy_labels = noisy_labels.long()
        self.class_counts += torch.bincount(noisy_labels, minlength=self.num_classes)
        self._accumulate(probs, noisy_labels)

    def _accumulate(self, probs: Tensor, noisy_labels: Tensor) -> None:
        """Add one checked batch to the states."""
        raise NotImplementedError

    def _check(self, probs: Tensor, noisy_labels: Tensor) -> None:
        name, num_classes = type(self).__name__, self.num_classes
        if not probs.is_floating_point():
            raise BadType(f"{name} needs floating-point probabilities, got {probs.dtype}: pass softmax(logits).")
        if noisy_labels.is_floating_point() or noisy_labels.dtype == torch.bool:
            raise BadType(
                f"{name} needs integer noisy labels, got {noisy_labels.dtype}:"
                f" pass class indices 0 to {num_classes - 1}."
            )
        if probs.ndim != 2 or probs.shape[1] != num_classes:
            raise BadValue(
                f"{name} expects probabilities of shape (N, {num_classes}), got {tuple(probs.shape)}:"
                " make the network's outputs and num_classes agree."
            )
        if noisy_labels.shape != probs.shape[:1]:
            raise BadValue(
                f"{name} got {len(probs)} predictions and noisy labels of shape {tuple(noisy_labels.shape)}:"
                " pass one label a prediction."
            )
        if len(probs) == 0:
            return
        smallest, largest = (value.item() for value in probs.aminmax())  # NaN where there is one
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            row = int((~torch.isfinite(probs)).any(dim=1).nonzero()[0])
            raise BadValue(
                f"{name} met NaN or infinite predictions (first in row {row} of the batch):"
                " the network has diverged; lower the learning rate or check its inputs."
            )
        sums = probs.sum(dim=1, dtype=torch.float64)
        tolerance = 1e-4 if probs.dtype in (torch.float32, torch.float64) else 2e-2
        if smallest < 0 or (sums - 1).abs().max() > tolerance:
            row = int((sums - 1).abs().argmax())
            raise BadValue(
                f"{name} expects rows of probabilities, but row {row} has the minimum {float(probs[row].min()):.4g}"
                f" and the sum {float(sums[row]):.4g}: pass softmax(logits)."
            )
        low, high = int(noisy_labels.min()), int(noisy_labels.max())
        if low < 0 or high >= num_classes:
            raise BadValue(
                f"{name} expects labels between 0 and {num_classes - 1}, got {low if low < 0 else high}:"
                " check the labels or num_classes."
            )

    def _require_every_class(self) -> None:
        """Stop unless every class has a noisy label."""
        total = int(self.class_counts.sum())
        if total == 0:
            raise BadValue(
                f"{type(self).__name__} has seen no example: the loader is empty; pass one with the training data."
            )
        missing = (self.class_counts == 0).nonzero().flatten().tolist()
        if missing:
            raise BadValue(
                f"{type(self).__name__} cannot estimate T: no example among {total} carries the noisy label"
                f" {', '.join(map(str, missing[:10]))}{' ...' if len(missing) > 10 else ''};"
                " lower num_classes or add examples of it."
            )

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Draw T-hat as a heat map.

        Args:
            val: The matrix to draw, ``(C, C)``; ``compute()`` where it is left out.
            ax: The axes to draw on; new ones where they are left out.

        Returns:
            The figure and its axes.
        """
        return draw_transition(self.compute() if val is None else val, ax=ax)
