"""The anchor-point ("perfect example") estimator of T."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.estimators.base import LARGEST_KEPT, TransitionEstimator
from noisylightning.functional.anchor import (
    Quantile,
    anchors,
    check_quantile,
    normalized_rows,
    quantile_ranks,
    replicated_anchors,
    surest_rows,
)
from noisylightning.functional.anchor_survey import (
    BINS,
    bins,
    count_bins,
    find_rank,
    merge_rows,
    rows_below_rank,
    rows_within,
    surer,
    surest_below,
)
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.probabilities import check_every_class
from noisylightning.predictions.record import Predictions


def _merge_surest(gathered: Tensor) -> Tensor:
    """Reduce each rank's surest rows, ``(world, C, C)``, to the surest of all ranks."""
    return reduce(surer, gathered)


class AnchorEstimator(TransitionEstimator):
    """T from the network's surest sample of each class (Patrini et al., CVPR 2017).

    It is :func:`~noisylightning.functional.anchor.anchor_transition`, fed batch by batch.

    Memory: ``quantile=None`` keeps C rows. The others keep every prediction (4 N C bytes in float32), or, where the
    predictions are seen twice (more than 2^27 of them), 20 kB a class and the rows near the quantile. With
    ``replicates`` every prediction is kept, and 8 bytes for each sample and replicate are needed.

    Args:
        num_classes: Number of classes C.
        quantile: Entries of class i's column at or above this quantile (of all N, method "higher") are left out:
            ``"auto"``, a number in (0, 1), or ``None`` to take the maximum itself.
        replicates: Number of bootstrap replicates that standard errors are computed from; 0 for none.
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

    rows: Tensor  # the surest of each class; in a second pass, below its bin
    probs: list[Tensor]
    index: list[Tensor]
    replicated_counts: Tensor
    histogram: Tensor  # of the first pass, ``(C, BINS)``; none before it
    surveyed: Tensor
    kept_classes: list[Tensor]
    kept_counts: list[Tensor]
    kept_rows: list[Tensor]
    bin: Tensor | None  # that each class's quantile lies in, once a first pass has told it
    place: Tensor | None  # of the quantile within it

    def __init__(self, num_classes: int, quantile: Quantile = "auto", replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        check_quantile(quantile)
        self.quantile = quantile
        keeps = quantile is not None or replicates > 0
        self._may_survey = quantile is not None and not replicates
        if quantile is None or self._may_survey:
            self.add_state("rows", torch.full((num_classes, num_classes), -1.0), dist_reduce_fx=_merge_surest)
        if keeps:
            self.add_state("probs", [], dist_reduce_fx="cat")
        if replicates:
            replicated = torch.zeros(replicates, num_classes, dtype=torch.long)
            self.add_state("replicated_counts", replicated, dist_reduce_fx="sum")
            self.add_state("index", [], dist_reduce_fx="cat")
        if self._may_survey:
            self.add_state("histogram", torch.zeros(1, dtype=torch.long), dist_reduce_fx="sum")
            self.add_state("surveyed", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
            for name in ("kept_classes", "kept_counts", "kept_rows"):
                self.add_state(name, [], dist_reduce_fx="cat")
        self.register_buffer("bin", None, persistent=False)
        self.register_buffer("place", None, persistent=False)

    def wants_survey(self, num_examples: int) -> bool:
        """Whether the predictions are more than it should keep."""
        return self._may_survey and num_examples * self.num_classes > LARGEST_KEPT

    def _survey(self, batch: Predictions) -> None:
        if not self._may_survey:
            super()._survey(batch)
        if self.histogram.ndim == 1:
            self.histogram = self.histogram.new_zeros(self.num_classes, BINS)
        self.surveyed += torch.bincount(batch.noisy_labels, minlength=self.num_classes)
        self.histogram += count_bins(batch.probs)

    def _conclude(self) -> None:
        assert self.quantile is not None
        ranks = quantile_ranks(self.surveyed, self.quantile).to(self.histogram.device)
        self.bin, self.place = find_rank(self.histogram, ranks)

    def _accumulate(self, batch: Predictions) -> None:
        probs = batch.probs
        if not len(probs):
            return
        if self.bin is not None:
            places = bins(probs)
            self.rows = surer(self.rows.to(probs.dtype), surest_below(probs, places, self.bin))
            self._keep(rows_within(probs, places, self.bin))
            return
        if self.quantile is None:
            self.rows = surer(self.rows.to(probs.dtype), surest_rows(probs))
        if self.quantile is not None or self.replicates:
            self.probs.append(probs)
        if self.replicates:
            self.index.append(batch.index)
            weights = bootstrap_weights(batch.index, self.replicates)[:, 1:]
            counts = torch.zeros_like(self.replicated_counts.t())
            self.replicated_counts += counts.index_add(0, batch.noisy_labels, weights).t()

    def _keep(self, found: tuple[Tensor, Tensor, Tensor]) -> None:
        kept = (self.kept_classes, self.kept_counts, self.kept_rows)
        for state, part in zip(kept, found, strict=True):
            state.append(part)
        lengths = [len(part) for part in self.kept_classes]
        if sum(lengths[1:]) > max(lengths[0], self.num_classes):  # rows that agree in their entry are merged
            for state, part in zip(kept, self._merged(), strict=True):
                state[:] = [part]

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        return merge_rows(*map(dim_zero_cat, (self.kept_classes, self.kept_counts, self.kept_rows)))

    def _anchors(self) -> Tensor:
        check_every_class(self.class_counts)
        if self.place is not None:
            rows = rows_below_rank(self._merged(), self.rows, self.place, int(self.class_counts.sum()))
            return normalized_rows(rows)
        if self.quantile is None:
            return normalized_rows(self.rows)
        return anchors(dim_zero_cat(self.probs), self.class_counts, self.quantile)

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        return self._anchors()

    def _replicated(self) -> Tensor:
        check_every_class(self.class_counts)
        weights = bootstrap_weights(dim_zero_cat(self.index), self.replicates)[:, 1:]
        return replicated_anchors(dim_zero_cat(self.probs), weights, self.replicated_counts, self.quantile)

    def reset(self) -> None:
        """Begin anew, with a first pass where there was one."""
        super().reset()
        self.bin = self.place = None
