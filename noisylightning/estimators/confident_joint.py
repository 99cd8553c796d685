"""The confident-joint estimator of T."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.errors import BadValue
from noisylightning.estimators.base import LARGEST_KEPT, TransitionEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.confident_joint import (
    check_self_confidence,
    confident_classes,
    confident_counts,
    confident_thresholds,
    count_pairs,
    joint_transition,
    self_confidence,
    sparse_joint_transition,
)
from noisylightning.predictions.record import Predictions

_MERGE_AT = 2**16  # counted pairs that have come in since they were last merged


class ConfidentJointEstimator(TransitionEstimator):
    """T by counting samples that are confidently of a class (Northcutt et al., JAIR 2021).

    It is :func:`~noisylightning.functional.confident_joint.confident_joint_transition`, fed batch by batch. Only
    samples that the network was trained without (``held_out``) count: it knows the labels of the others by heart.

    Memory: C^2 counts, where the predictions are seen twice (more than 2^27 of them); else every held-out prediction.
    With ``max_entries`` T-hat is sparse and only pairs that occur are counted: for thousands of classes. It goes into a
    :class:`~noisylightning.transition.SparseTransition`, and with it into a correction that has one.

    Standard errors: each bootstrap replicate has thresholds and counts of its own, so each costs as much as T-hat.

    Args:
        num_classes: Number of classes C.
        max_entries: At most so many entries are kept in a row of T-hat, the largest, the diagonal always among them,
            and divided by their sum: the rest is cut off, see ``mass_cut``. By default all are kept.
        replicates: Number of bootstrap replicates that standard errors are computed from; 0 for none.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Attributes:
        mass_cut: The share of each row of T-hat that ``max_entries`` has cut, float64 of shape ``(C,)``; None before
            ``compute``, and where nothing is cut.

    Raises:
        ValueError: If ``max_entries`` is below 1, or given together with ``replicates``; from ``compute`` if a class
            has no held-out sample, or no sample is confidently of it.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> held_out = torch.ones(4, dtype=torch.bool)
        >>> estimator = ConfidentJointEstimator(num_classes=2)
        >>> estimator.update(Predictions.from_probs(probs, torch.tensor([0, 1, 1, 1]), held_out=held_out))
        >>> estimator.compute()
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"held_out"})

    sums: Tensor
    held_out_counts: Tensor
    counts: Tensor
    pairs: list[Tensor]
    probs: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]
    thresholds: Tensor | None  # once a first pass has given them

    def __init__(self, num_classes: int, max_entries: int | None = None, replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        if max_entries is not None and max_entries < 1:
            raise BadValue(f"max_entries must be at least 1, got {max_entries}, or None to keep all.")
        if max_entries is not None and replicates:
            raise BadValue(
                f"A sparse T-hat has no standard errors, got replicates={replicates}: leave max_entries out."
            )
        self.max_entries = max_entries
        self.mass_cut: Tensor | None = None
        # Row 0 is the sample itself, the others its replicates.
        self.add_state("sums", torch.zeros(replicates + 1, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state(
            "held_out_counts", torch.zeros(replicates + 1, num_classes, dtype=torch.long), dist_reduce_fx="sum"
        )
        self.add_state("counts", torch.zeros(1, dtype=torch.long), dist_reduce_fx="sum")  # until a first pass is over
        for name in ("probs", "labels", "index", "pairs"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.register_buffer("thresholds", None, persistent=False)

    def wants_survey(self, num_examples: int) -> bool:
        """Whether the predictions are more than it should keep."""
        return num_examples * self.num_classes > LARGEST_KEPT

    def _survey(self, batch: Predictions) -> None:
        self._sum(batch.select(batch.held_out))

    def _sum(self, batch: Predictions) -> None:
        labels, weights = batch.noisy_labels, bootstrap_weights(batch.index, self.replicates)
        self.sums += self_confidence(batch.probs, labels, weights)
        self.held_out_counts += torch.zeros_like(self.held_out_counts.t()).index_add(0, labels, weights).t()

    def end_survey(self) -> None:
        """Conclude the first pass, which has given the thresholds; every process must call it."""
        super().end_survey()
        if self.max_entries is None:
            self.counts = self.counts.new_zeros(self.replicates + 1, self.num_classes, self.num_classes)

    def _conclude(self) -> None:
        self.thresholds = confident_thresholds(self.sums, self.held_out_counts)  # what is missing, compute() says

    def _accumulate(self, batch: Predictions) -> None:
        batch = batch.select(batch.held_out)
        probs, labels = batch.probs, batch.noisy_labels
        if self.thresholds is None:
            self._sum(batch)
            self.probs.append(probs)
            self.labels.append(labels)
            self.index.append(batch.index)
        elif self.max_entries is None:
            self._count(self.counts, probs, labels, batch.index, self.thresholds, slice(None))
        else:
            self.pairs.append(self._paired(probs, labels, self.thresholds))
            if sum(map(len, self.pairs[1:])) > max(_MERGE_AT, len(self.pairs[0])):
                self.pairs[:] = [count_pairs(torch.cat(self.pairs))]

    def _count(
        self, counts: Tensor, probs: Tensor, labels: Tensor, index: Tensor, thresholds: Tensor, rows: slice
    ) -> None:
        """Count for the sample (row 0) and its replicates (the others), those that are asked for, and add in place."""
        weights = bootstrap_weights(index, self.replicates).t()
        for before, bounds, times in zip(counts, thresholds[rows], weights[rows], strict=True):
            confident_counts(probs, labels, bounds, times, before)

    def _paired(self, probs: Tensor, labels: Tensor, thresholds: Tensor) -> Tensor:
        classes = confident_classes(probs, thresholds[0])
        keys = (labels * self.num_classes + classes)[classes >= 0]
        return count_pairs(torch.stack([keys, torch.ones_like(keys)], dim=1))

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return dim_zero_cat(self.probs), dim_zero_cat(self.labels), dim_zero_cat(self.index)

    def _joint(self, rows: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """T-hat of the sample or of replicates, ``(..., C, C)``."""
        if self.thresholds is not None:
            counts = self.counts[rows]
        else:
            thresholds = confident_thresholds(self.sums, self.held_out_counts)
            counts = self.counts.new_zeros(len(thresholds[rows]), self.num_classes, self.num_classes)
            self._count(counts, *self._rows(), thresholds, rows)
        return joint_transition(counts, self.held_out_counts[rows], dtype)

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one; sparse with ``max_entries``."""
        found = self.held_out_counts[0]
        missing = (found == 0).nonzero()
        if len(missing):
            raise BadValue(
                f"T cannot be estimated: of {int(found.sum())} held-out samples none carries the label"
                f" {int(missing[0])}; hold out more samples (val_fraction), or lower num_classes."
            )
        check_self_confidence(self.sums[0], found)
        if self.max_entries is None:
            return self._joint(slice(1), torch.float32)[0]
        if self.thresholds is not None:
            pairs = count_pairs(dim_zero_cat(self.pairs))
        else:
            probs, labels, _ = self._rows()
            pairs = self._paired(probs, labels, confident_thresholds(self.sums, self.held_out_counts))
        transition, self.mass_cut = sparse_joint_transition(pairs, found, self.max_entries)
        return transition

    def _replicated(self) -> Tensor:
        missing = (self.held_out_counts == 0).any(dim=0).nonzero()
        if len(missing):
            raise BadValue(
                f"There are no standard errors: class {int(missing[0])} has so few held-out samples that a bootstrap"
                " replicate has none; add samples, or pass replicates=0."
            )
        return self._joint(slice(1, None))

    def reset(self) -> None:
        """Begin anew, with a first pass where there was one."""
        super().reset()
        self.thresholds = self.mass_cut = None
