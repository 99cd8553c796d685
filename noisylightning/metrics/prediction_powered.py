"""Accuracy on clean labels from a few trusted labels and many noisy ones."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.clean_accuracy import Estimate
from noisylightning.functional.prediction_powered import prediction_powered_accuracy
from noisylightning.functional.probabilities import check_labels
from noisylightning.metrics.base import CleanMetric
from noisylightning.transition import Transition


class PredictionPoweredAccuracy(CleanMetric):
    """Accuracy on clean labels from noisy labels and a few trusted ones, right whatever the noise is.

    It is :func:`~noisylightning.functional.prediction_powered_accuracy`, fed batch by batch. The trusted samples are
    drawn at random from all, and neither T-hat nor the network comes from them. Memory: 3 C x C integers.

    Args:
        transition: T, see :class:`~noisylightning.metrics.base.CleanMetric`.
        tune: Whether to weigh the noisy labels by how much they tell.
        **kwargs: ``ignore_index``, see there, or passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: From ``compute``, if there are fewer than two samples with, or without, a trusted label, or T is
            singular or depends on the sample.

    Example:
        >>> metric = PredictionPoweredAccuracy(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
        >>> noisy, predicted = torch.tensor([0, 0, 1, 1] * 50), torch.tensor([0, 0, 1, 0] * 50)
        >>> trusted = torch.full((200,), -1)
        >>> trusted[:20] = torch.tensor([0, 0, 1, 0] * 5)  # all of them are predicted right
        >>> metric.update(predicted, noisy, trusted)
        >>> metric.compute()
        tensor(1.)
    """

    counts: Tensor

    def __init__(self, transition: Tensor | Transition | str | Path, tune: bool = True, **kwargs: Any) -> None:
        if kwargs.get("standard_error") is not None:
            raise BadValue("PredictionPoweredAccuracy asks for no standard_error: it is right whatever T is.")
        super().__init__(transition, **kwargs)
        self.tune = tune
        counts = torch.zeros(3, self.num_classes, self.num_classes, dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, clean_target: Tensor) -> None:
        """Take in one batch.

        Args:
            preds: Scores, shape ``(N, C)``, or predicted clean classes, shape ``(N,)``.
            target: Noisy labels, shape ``(N,)``.
            clean_target: Trusted labels, shape ``(N,)``, -1 where there is none.

        Raises:
            TypeError: If the labels are not integers.
            ValueError: If shapes do not go together, or a label is no class.
        """
        check_labels(clean_target, self.num_classes, "trusted labels", lowest=-1)
        if clean_target.shape != target.shape:
            raise BadValue(
                f"trusted labels are of shape {tuple(clean_target.shape)} but noisy ones of {tuple(target.shape)}: give"
                " -1 where there is none."
            )
        kept = self._kept(target)
        preds = self._classes(preds, target)
        right = clean_target == preds
        for place, chosen in enumerate((clean_target < 0, (clean_target >= 0) & ~right, right)):
            self.counts[place] += self._count(preds[kept & chosen], target[kept & chosen])

    def _estimate(self) -> Estimate:
        counts, wrong, right = self.counts
        return prediction_powered_accuracy(counts, wrong, right, self.transition, self.tune)
