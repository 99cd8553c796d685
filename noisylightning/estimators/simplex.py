"""The estimator of T from the corners of the simplex that noisy posteriors fill."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.estimators.base import TransitionEstimator
from noisylightning.estimators.with_features import in_order
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.probabilities import check_every_class
from noisylightning.functional.simplex import simplex_transition
from noisylightning.predictions.record import Predictions


class SimplexEstimator(TransitionEstimator):
    """T from the corners of the posteriors' simplex (Gillis and Vavasis, TPAMI 2014).

    It is :func:`~noisylightning.functional.simplex.simplex_transition`, on the samples in the order of their index. It
    keeps every prediction, ``O(N C)`` memory.

    Args:
        num_classes: Number of classes C.
        depth: Of each class the share of samples, those that lie farthest out, that its row is the mean of.
        replicates: As in :class:`TransitionEstimator`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: From ``compute``, as that function, or if the index of a sample is unknown or a class has no label.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5], [0.6, 0.4]])
        >>> estimator = SimplexEstimator(num_classes=2)
        >>> estimator.update(Predictions.from_probs(probs, torch.tensor([0, 1, 1, 0])))
        >>> estimator.compute()
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """

    probs: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_classes: int, depth: float = 0.5, replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        self.depth = depth
        self.add_state("probs", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def _accumulate(self, batch: Predictions) -> None:
        self.probs.append(batch.probs)
        self.index.append(batch.index)

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        return simplex_transition(self._ordered()[0], depth=self.depth).float()

    def _ordered(self) -> tuple[Tensor, Tensor]:
        check_every_class(self.class_counts)
        index, order = in_order(dim_zero_cat(self.index), type(self).__name__)
        return dim_zero_cat(self.probs)[order], index

    def _replicated(self) -> Tensor:
        probs, index = self._ordered()
        weights = bootstrap_weights(index, self.replicates)[:, 1:]
        return torch.stack([simplex_transition(probs, depth=self.depth, weights=w) for w in weights.unbind(dim=1)])
