"""The estimator of a T that depends on the sample by the parts of its features."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.errors import BadValue
from noisylightning.estimators.base import TransitionEstimator
from noisylightning.functional.part_dependent import part_codes, part_transitions
from noisylightning.predictions.record import Predictions


class PartDependentEstimator(TransitionEstimator):
    """T of each sample, by the parts it is made of (PTD, Xia et al., NeurIPS 2020).

    It is :func:`~noisylightning.functional.part_dependent.part_codes` and
    :func:`~noisylightning.functional.part_dependent.part_transitions`, fed batch by batch. ``compute`` gives the mean
    of T(x), :meth:`details` what a :class:`~noisylightning.transition.PartDependentTransition` takes.

    Memory: it keeps every prediction and every feature.

    Args:
        num_classes: Number of classes C.
        num_parts: Number of parts R.
        anchors: Anchors of each class that the T of the parts are fitted to.
        seed: Seed of the factorization.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: From ``compute``, as the two functions do, or if the samples' places are not known.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
        >>> estimator = PartDependentEstimator(2, num_parts=2, anchors=2)
        >>> estimator.update(Predictions.from_probs(probs, torch.tensor([0, 0, 1, 1]), features=features))
        >>> estimator.compute()
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    probs: list[Tensor]
    labels: list[Tensor]
    features: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_classes: int, num_parts: int = 10, anchors: int = 20, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.num_parts, self.anchors, self.seed = num_parts, anchors, seed
        for name in ("probs", "labels", "features", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self._details: dict[str, Tensor] = {}

    def _accumulate(self, batch: Predictions) -> None:
        assert batch.features is not None
        self.probs.append(batch.probs)
        self.labels.append(batch.noisy_labels)
        self.features.append(batch.features)
        self.index.append(batch.index)

    def compute(self) -> Tensor:
        """Return the mean of T(x), ``(C, C)``, rows sum to one."""
        index = dim_zero_cat(self.index).cpu()
        if bool((index < 0).any()):
            raise BadValue(
                "PartDependentEstimator needs the place of each sample in the data set, but some are unknown (index"
                " -1): let predict give one row a sample."
            )
        order = index.argsort(stable=True)
        probs, labels, features = (
            dim_zero_cat(state).cpu()[order] for state in (self.probs, self.labels, self.features)
        )
        codes = part_codes(features, self.num_parts, seed=self.seed)
        parts = part_transitions(probs, labels, codes, anchors=self.anchors)
        mean = codes.mean(dim=0)
        table = mean.repeat(int(index.max()) + 1, 1)
        table[index[order]] = codes
        self._details = {"parts": parts.float(), "codes": table.float()}
        transition = torch.einsum("r,rij->ij", mean, parts)
        return (transition / transition.sum(dim=1, keepdim=True)).float()

    def details(self) -> dict[str, Tensor]:
        """Return ``parts``, ``(R, C, C)``, and ``codes``, a row ``(R,)`` for each place in the data set."""
        self.compute()
        return self._details
