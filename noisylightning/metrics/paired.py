"""Which of two networks is better on clean labels, from noisy ones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisylightning.functional.clean_accuracy import Estimate, PairedMoments, difference_of, invert, paired_moments
from noisylightning.metrics.base import CleanMetric
from noisylightning.transition import Transition


class PairedCleanAccuracy(CleanMetric):
    """By how much one network's accuracy on clean labels is above another's, from noisy labels of the same samples.

    It is :func:`~noisylightning.functional.clean_accuracy_difference`, fed batch by batch. The interval is narrower
    than that of either accuracy, since samples that both predict alike add nothing. If it does not cover 0, one network
    is better. Memory: C x C integers.

    Args:
        transition: T, see :class:`~noisylightning.metrics.base.CleanMetric`; what it is now counts.
        **kwargs: ``standard_error`` and ``ignore_index``, see there, or passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If T is singular or depends on the sample; from ``compute``, if there are fewer than two samples.

    Example:
        >>> metric = PairedCleanAccuracy(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        >>> noisy = torch.tensor([0, 1] * 50)
        >>> first, second = noisy.clone(), noisy.clone()
        >>> second[:10] = 0
        >>> metric.update(first, second, noisy)
        >>> metric.compute(), metric.interval()
        (tensor(0.0833), (tensor(0.0118), tensor(0.1549)))
    """

    inverse: Tensor
    difference: Tensor
    squares: Tensor
    num: Tensor

    def __init__(self, transition: Tensor | Transition | str | Path, **kwargs: Any) -> None:
        super().__init__(transition, **kwargs)
        self.__dict__["inverse"] = invert(self.transition)
        zero = torch.zeros((), dtype=torch.long)
        self.add_state("difference", zero.expand(self.num_classes, self.num_classes).clone(), dist_reduce_fx="sum")
        self.add_state("squares", zero.clone(), dist_reduce_fx="sum")
        self.add_state("num", zero.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, other: Tensor, target: Tensor) -> None:
        """Take in one batch.

        Args:
            preds: Scores of the one network, shape ``(N, C)``, or its predicted clean classes, shape ``(N,)``.
            other: Those of the other.
            target: Noisy labels, shape ``(N,)``.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If shapes do not go together, or a label is no class.
        """
        kept = self._kept(target)
        first, second = (self._classes(some, target)[kept] for some in (preds, other))
        moments = paired_moments(target[kept], first, second, self.inverse)
        self.difference += moments.difference
        self.squares += moments.squares
        self.num += moments.num

    def _estimate(self) -> Estimate:
        moments = PairedMoments(self.difference, self.squares, self.num)
        return difference_of(moments, self.inverse, self.standard_error)
