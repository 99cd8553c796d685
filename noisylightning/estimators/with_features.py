"""What the estimators share that look at all samples and their features at once."""

from typing import Any

from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.errors import BadValue
from noisylightning.estimators.base import TransitionEstimator
from noisylightning.predictions.record import Predictions


class FeatureEstimator(TransitionEstimator):
    """Base class of the estimators that read features and noisy labels alone, no predictions.

    Features, labels and places of all samples are kept: ``O(N D)`` memory.

    Args:
        num_classes: Number of classes C.
        replicates: As in :class:`TransitionEstimator`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.
    """

    needs = frozenset({"features"})

    features: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_classes: int, replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        for name in ("features", "labels", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def _accumulate(self, batch: Predictions) -> None:
        assert batch.features is not None
        self.features.append(batch.features)
        self.labels.append(batch.noisy_labels)
        self.index.append(batch.index)

    def ordered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, labels and index of all samples, in the order of their index.

        Raises:
            ValueError: If there is no sample, or the place of one is unknown or another's too.
        """
        if not len(self.index):
            raise BadValue("T cannot be estimated from no example: the loader is empty; pass one with training data.")
        index, order = in_order(dim_zero_cat(self.index), type(self).__name__)
        return dim_zero_cat(self.features)[order], dim_zero_cat(self.labels)[order], index


def in_order(index: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Sort the places of samples in their data set.

    Args:
        index: The places, shape ``(N,)``.
        name: The estimator's, for the error.

    Returns:
        The places in order, and the permutation that puts them so.

    Raises:
        ValueError: If one is unknown (-1), or there are two of it.
    """
    places, order = index.sort()
    if places[0] < 0:
        raise BadValue(
            f"{name} goes through the samples in the order of their index, but that of {int((places < 0).sum())} is"
            " unknown (-1): give the index."
        )
    if (places[1:] == places[:-1]).any():
        twice = int(places[1:][places[1:] == places[:-1]][0])
        raise BadValue(f"{name} takes each sample once, but index {twice} comes twice: give each its own.")
    return places, order
