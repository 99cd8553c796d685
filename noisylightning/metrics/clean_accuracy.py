"""Accuracy, recall and the confusion matrix on clean labels, from noisy ones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.clean_accuracy import Average, Estimate, clean_accuracy, clean_confusion_matrix
from noisylightning.metrics.base import CleanMetric
from noisylightning.transition import Transition


class CleanConfusionMatrix(CleanMetric):
    """The confusion matrix on clean labels, ``M[i, k] = p(clean = i, predicted = k)``, from noisy labels.

    It is :func:`~noisylightning.functional.clean_confusion_matrix`, fed batch by batch, and right where noise depends
    on the class alone and the network was not trained on these samples. Memory: C x C integers.

    Args:
        transition: T, see :class:`~noisylightning.metrics.base.CleanMetric`.
        **kwargs: ``standard_error`` and ``ignore_index``, see there, or passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: From ``compute``, if there are fewer than two samples, or T is singular or depends on the sample.

    Example:
        >>> metric = CleanConfusionMatrix(torch.tensor([[0.8, 0.2], [0.0, 1.0]]))
        >>> for noisy, predicted in ([0, 0, 1, 1, 1], [0, 0, 0, 1, 1]), ([0, 0, 1, 1, 1], [0, 0, 1, 1, 1]):
        ...     metric.update(torch.tensor(predicted), torch.tensor(noisy))
        >>> metric.compute()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    counts: Tensor

    def __init__(self, transition: Tensor | Transition | str | Path, **kwargs: Any) -> None:
        super().__init__(transition, **kwargs)
        counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in one batch.

        Args:
            preds: Scores, shape ``(N, C)``, or predicted clean classes, shape ``(N,)``.
            target: Noisy labels, shape ``(N,)``.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If shapes do not go together, or a label is no class.
        """
        kept = self._kept(target)
        self.counts += self._count(self._classes(preds, target)[kept], target[kept])

    def _estimate(self) -> Estimate:
        return clean_confusion_matrix(self.counts, self.transition, self.standard_error)


class CleanAccuracy(CleanConfusionMatrix):
    """Accuracy on clean labels, or recall, from noisy labels.

    It is :func:`~noisylightning.functional.clean_accuracy`, fed batch by batch, and right where noise depends on the
    class alone and the network was not trained on these samples. Memory: C x C integers.

    Args:
        transition: T, see :class:`~noisylightning.metrics.base.CleanMetric`.
        average: ``"micro"`` for accuracy, ``"macro"`` for balanced accuracy, ``"none"`` for the recall of each class.
        **kwargs: ``standard_error`` and ``ignore_index``, see there, or passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``average`` is none of these; from ``compute``, if there are fewer than two samples, T is
            singular or depends on the sample, or a recall is asked for and a class has, by T, no sample.

    Example:
        >>> metric = CleanAccuracy(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        >>> noisy = torch.tensor([0, 1] * 50)
        >>> predicted = torch.cat([noisy[:74], 1 - noisy[74:]])  # 74 % of the noisy labels
        >>> metric.update(predicted, noisy)
        >>> metric.compute(), metric.interval()
        (tensor(0.9000), (tensor(0.7560), tensor(1.0440)))
    """

    def __init__(self, transition: Tensor | Transition | str | Path, average: Average = "micro", **kwargs: Any) -> None:
        super().__init__(transition, **kwargs)
        if average not in ("micro", "macro", "none"):
            raise BadValue(f"average must be 'micro', 'macro' or 'none', got {average!r}.")
        self.average = average

    def _estimate(self) -> Estimate:
        return clean_accuracy(self.counts, self.transition, self.standard_error, self.average)
