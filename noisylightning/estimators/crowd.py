"""T of the crowd, from the answers of several annotators."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.errors import BadValue
from noisylightning.estimators.base import TransitionEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.crowd import DawidSkene, dawid_skene
from noisylightning.predictions.record import Predictions


class CrowdEstimator(TransitionEstimator):
    """T and soft labels from the answers of annotators (Dawid and Skene 1979).

    It is :func:`~noisylightning.functional.dawid_skene` on the ``noisy_labels``, ``(N, annotators)``, of
    :class:`~noisylightning.predictions.Predictions`; what a network predicts is not read.

    Memory: every answer, 8 bytes for each sample and annotator.

    Args:
        num_classes: Number of classes C.
        smoothing: Answers that each annotator is taken to have given beforehand to each class of items.
        **kwargs: ``replicates``, or passed on to :class:`torchmetrics.Metric`.

    Attributes:
        crowd: After ``compute``, the soft labels, items in the order of their ``index``, and the T of each annotator.

    Raises:
        ValueError: If the place of a sample is unknown; from ``compute`` if an annotator, an item or a class has no
            answer.
        RuntimeError: From ``compute``, if it does not converge.

    Example:
        >>> answers = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, -1], [1, -1, 1]])
        >>> estimator = CrowdEstimator(num_classes=2)
        >>> estimator.update(Predictions(torch.zeros(4, 2), answers))
        >>> estimator.compute()
        tensor([[0.7718, 0.2282],
                [0.0042, 0.9958]])
        >>> estimator.crowd.soft_labels.argmax(dim=1)
        tensor([0, 1, 0, 1])
    """

    takes_annotators = True

    answers: list[Tensor]
    places: list[Tensor]
    crowd: DawidSkene | None

    def __init__(self, num_classes: int, smoothing: float = 0.1, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.smoothing = smoothing
        self.crowd = None
        self.add_state("answers", [], dist_reduce_fx="cat")
        self.add_state("places", [], dist_reduce_fx="cat")

    def _accumulate(self, batch: Predictions) -> None:
        if (batch.index < 0).any():
            raise BadValue(
                "CrowdEstimator needs the place of each sample in the data set, but some are unknown (index -1): give"
                " the index."
            )
        if self.answers and self.answers[0].shape[1] != batch.noisy_labels.shape[1]:
            raise BadValue(
                f"A batch has the answers of {batch.noisy_labels.shape[1]} annotators, the one before of"
                f" {self.answers[0].shape[1]}: give every annotator a column in every batch."
            )
        self.answers.append(batch.noisy_labels)
        self.places.append(batch.index)

    def compute(self) -> Tensor:
        """Return T-hat of an answer drawn at random, ``(C, C)``, rows sum to one."""
        answers, _ = self._in_order()
        self.crowd = dawid_skene(answers, self.num_classes, smoothing=self.smoothing)
        return self.crowd.transition.float()

    def _in_order(self) -> tuple[Tensor, Tensor]:
        """The answers and places of all samples in the order of the places, on the CPU."""
        if not self.answers:
            raise BadValue("T cannot be estimated from no example: the loader is empty; pass one with answers.")
        places, order = dim_zero_cat(self.places).cpu().sort()
        return dim_zero_cat(self.answers).cpu()[order], places

    def _replicated(self) -> Tensor:
        answers, places = self._in_order()
        found = dawid_skene(answers, self.num_classes, smoothing=self.smoothing)
        weights = bootstrap_weights(places, self.replicates)[:, 1:]
        return torch.stack([self._reweighted(answers, found, column) for column in weights.T])

    def _reweighted(self, answers: Tensor, found: DawidSkene, weights: Tensor) -> Tensor:
        start, smoothing = found.soft_labels, self.smoothing
        return dawid_skene(answers, self.num_classes, smoothing=smoothing, weights=weights, start=start).transition
