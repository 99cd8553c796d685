"""The Dual-T estimator of T."""

from typing import Any

import torch
from torch import Tensor

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.functional.anchor import Quantile
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.dual import dual_product, predicted_counts
from noisylightning.predictions.record import Predictions


class DualTEstimator(AnchorEstimator):
    """T as the anchor estimate times counts of the labels (Yao et al., NeurIPS 2020).

    It is :func:`~noisylightning.functional.dual.dual_transition`, fed batch by batch. Memory and standard errors are as
    for :class:`AnchorEstimator`.

    Args:
        num_classes: Number of classes C.
        quantile: Of the anchor estimate, see :class:`AnchorEstimator`.
        replicates: Number of bootstrap replicates that standard errors are computed from; 0 for none.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: As for :class:`AnchorEstimator`; from ``compute`` also if a class is predicted for no sample.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.0, 1.0]])
        >>> estimator = DualTEstimator(num_classes=2, quantile=None)
        >>> estimator.update(Predictions.from_probs(probs, noisy_labels=torch.tensor([0, 1, 1, 1])))
        >>> estimator.compute()
        tensor([[0.4000, 0.6000],
                [0.0000, 1.0000]])
    """

    counts: Tensor

    def __init__(self, num_classes: int, quantile: Quantile = "auto", replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, quantile, replicates, **kwargs)
        counts = torch.zeros(replicates + 1, num_classes, num_classes, dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def _accumulate(self, batch: Predictions) -> None:
        super()._accumulate(batch)
        weights = bootstrap_weights(batch.index, self.replicates)
        self.counts += predicted_counts(batch.probs, batch.noisy_labels, weights)

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        return dual_product(self._anchors(), self.counts[0])

    def _replicated(self) -> Tensor:
        return dual_product(super()._replicated(), self.counts[1:])
