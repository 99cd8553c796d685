"""What every metric of clean labels shares: T, an estimate and its interval."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.clean_accuracy import Estimate, condition_warning, count_pairs
from noisylightning.transition import Transition, as_transition


class CleanMetric(Metric):
    """Base class of metrics of clean labels: ``compute`` gives the value, :meth:`interval` the bounds.

    A subclass keeps integer states that add up, so that it gives the same bits in any batches, in any order and on any
    number of processes, and defines :meth:`_estimate`. It warns where T is nearly singular.

    Args:
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, a file's path or a
            :class:`~noisylightning.transition.Transition`. No checkpoint keeps it with the metric.
        standard_error: That of each entry of T, shape ``(C, C)``, where T is an estimate.
        ignore_index: Noisy labels with this index count nothing.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If T is none of these.
        ValueError: If T is not row-stochastic.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    transition: Transition
    standard_error: Tensor | None

    def __init__(
        self,
        transition: Tensor | Transition | str | Path,
        standard_error: Tensor | None = None,
        ignore_index: int | None = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Past nn.Module, which would make it a part of the metric, and of the checkpoints of a model that has one.
        self.__dict__["transition"] = as_transition(transition)
        self.__dict__["standard_error"] = standard_error
        self.num_classes = self.transition.num_classes
        self.ignore_index = ignore_index

    def compute(self) -> Tensor:
        """Return the estimate, float32."""
        return self._warned().value.float().to(self.device)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the lower and the upper bound, float32, of all processes' samples; see :meth:`estimate`.

        Args:
            level: How often the interval is to cover the truth, in (0, 1).
        """
        low, high = self.estimate().interval(level)
        return low.float().to(self.device), high.float().to(self.device)

    def estimate(self) -> Estimate:
        """Return the estimate and its standard error, float64 on the CPU; every process must call it."""
        self.sync(self.dist_sync_fn, self.process_group, self._to_sync)
        try:
            return self._warned()
        finally:
            self.unsync(self._is_synced and self._should_unsync)

    def _warned(self) -> Estimate:
        found = self._estimate()
        sentence = condition_warning(self.transition, self.standard_error)
        if sentence is not None:
            rank_zero_warn(sentence)
        return found

    def _estimate(self) -> Estimate:
        """Return the estimate; the states are those of all processes."""
        raise NotImplementedError

    def _classes(self, preds: Tensor, target: Tensor) -> Tensor:
        """Return predicted classes, ``(N,)``, from these or from scores ``(N, C)``."""
        if preds.is_floating_point():
            if preds.shape != (len(target), self.num_classes):
                raise BadValue(
                    f"{type(self).__name__} takes scores of shape ({len(target)}, {self.num_classes}) or classes of"
                    f" shape ({len(target)},), got {tuple(preds.shape)}: pass a row a label."
                )
            return preds.argmax(dim=1)
        return preds

    def _kept(self, target: Tensor) -> Tensor:
        """Return which labels count, bool of shape ``(N,)``."""
        if target.is_floating_point() or target.ndim != 1:
            raise BadType(
                f"{type(self).__name__} takes one noisy label a sample, integers of shape (N,), got {target.dtype} of"
                f" shape {tuple(target.shape)}."
            )
        return torch.ones_like(target, dtype=torch.bool) if self.ignore_index is None else target != self.ignore_index

    def _count(self, preds: Tensor, target: Tensor) -> Tensor:
        return count_pairs(target, preds, self.num_classes)
