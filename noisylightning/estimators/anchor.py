"""The anchor-point ("perfect example") estimator of T."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.estimators.base import TransitionEstimator
from noisylightning.functional.anchor import Quantile, anchors, check_quantile, surest_rows
from noisylightning.functional.probabilities import check_every_class
from noisylightning.predictions.record import Predictions


def _merge_rows(gathered: Tensor) -> Tensor:
    """Reduce each rank's surest rows, ``(world, C, C)``, to the surest of all ranks."""
    return surest_rows(gathered.flatten(0, 1))


class AnchorEstimator(TransitionEstimator):
    """Estimate T from the examples that the network is surest of, class by class (Patrini et al., CVPR 2017).

    It is :func:`~noisylightning.functional.anchor.anchor_transition`, fed batch by batch.

    Memory: ``quantile=None`` keeps C rows; the others keep every prediction (4 N C bytes in float32).

    Args:
        num_classes: Number of classes C.
        quantile: Entries of class i's column at or above this quantile (of all N, method "higher") are left out:
            ``"auto"``, a number in (0, 1), or ``None`` to take the maximum itself.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``quantile`` is none of the above; from ``compute`` if a class has no noisy label, or if no entry
            of a column lies below its quantile.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])
        >>> estimator = AnchorEstimator(num_classes=2, quantile=None)
        >>> estimator.update(Predictions.from_probs(probs, noisy_labels=torch.tensor([0, 1, 1])))
        >>> estimator.compute()
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """

    probs: list[Tensor]
    rows: Tensor

    def __init__(self, num_classes: int, quantile: Quantile = "auto", **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        check_quantile(quantile)
        self.quantile = quantile
        if quantile is None:
            self.add_state("rows", torch.full((num_classes, num_classes), -1.0), dist_reduce_fx=_merge_rows)
        else:
            self.add_state("probs", [], dist_reduce_fx="cat")

    def _accumulate(self, batch: Predictions) -> None:
        probs = batch.probs
        if self.quantile is not None:
            self.probs.append(probs)
        elif len(probs):
            self.rows = surest_rows(torch.cat([self.rows.to(probs.dtype), probs]))

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        check_every_class(self.class_counts)
        probs = self.rows if self.quantile is None else dim_zero_cat(self.probs)
        return anchors(probs, self.class_counts, self.quantile)
