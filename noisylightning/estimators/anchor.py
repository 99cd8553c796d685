"""The anchor-point ("perfect example") estimator of T."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from noisylightning.errors import BadValue
from noisylightning.estimators.base import TransitionEstimator


def lexicographic_max(rows: Tensor) -> Tensor:
    """Return the lexicographically largest row of ``(N, C)``: a tie-break that no order of the samples changes.

    Example:
        >>> lexicographic_max(torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 9.0]]))
        tensor([1., 3.])
    """
    for column in range(rows.shape[1]):
        if len(rows) == 1:
            break
        rows = rows[rows[:, column] == rows[:, column].max()]
    return rows[0]


def _merge_anchors(gathered: Tensor) -> Tensor:
    """Reduce each rank's anchors, ``(world, C, C)``, to the anchors over all ranks."""
    return torch.stack([_best_row(gathered[:, i], i) for i in range(gathered.shape[1])])


def _best_row(rows: Tensor, i: int) -> Tensor:
    """Return the row of ``(N, C)`` that is surest of class ``i``."""
    return lexicographic_max(rows[rows[:, i] == rows[:, i].max()])


class AnchorEstimator(TransitionEstimator):
    r"""Estimate T from the examples that the network is surest of.

    For each class i the "perfect example" :math:`x^i = \arg\max_x p(\text{noisy} = i \mid x)` gives the row
    :math:`\hat T_{i \cdot} = p(\text{noisy} = \cdot \mid x^i)` (Patrini et al., CVPR 2017, eqs. 12 and 13).

    The single surest example is often an outlier; the paper's code therefore leaves out, class by class, all entries at
    or above the 97th percentile. A fixed percentile removes a whole class whose prior is below 3 %, so the default
    scales it: the quantile of class i is ``1 - 0.3 * prior_i``, with its share of the noisy labels as its prior. With
    ten balanced classes this is the paper's 0.97.

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
        >>> estimator = AnchorEstimator(num_classes=2, quantile=None)
        >>> estimator.update(torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]]), torch.tensor([0, 1, 1]))
        >>> estimator.compute()
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """

    probs: list[Tensor]
    rows: Tensor

    def __init__(self, num_classes: int, quantile: float | Literal["auto"] | None = "auto", **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        valid = quantile is None or quantile == "auto" or (not isinstance(quantile, str) and 0 < quantile < 1)
        if not valid:
            raise BadValue(f"quantile must be 'auto', None or a number in (0, 1), got {quantile!r}.")
        self.quantile = quantile
        if quantile is None:
            self.add_state("rows", torch.full((num_classes, num_classes), -1.0), dist_reduce_fx=_merge_anchors)
        else:
            self.add_state("probs", [], dist_reduce_fx="cat")

    def _accumulate(self, probs: Tensor, noisy_labels: Tensor) -> None:
        if self.quantile is not None:
            self.probs.append(probs)
        elif len(probs):
            candidates = torch.cat([self.rows.to(probs.dtype), probs])
            self.rows = torch.stack([_best_row(candidates, i) for i in range(self.num_classes)])

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        self._require_every_class()
        rows = self.rows if self.quantile is None else self._rows_below_quantile(dim_zero_cat(self.probs))
        wide = rows.double()
        return (wide / wide.sum(dim=1, keepdim=True)).to(rows.dtype)

    def _rows_below_quantile(self, probs: Tensor) -> Tensor:
        total = len(probs)
        rows = []
        for i, count in enumerate(self.class_counts.tolist()):
            quantile = 1 - 0.3 * count / total if self.quantile == "auto" else float(self.quantile)  # type: ignore[arg-type]
            column = probs[:, i].contiguous()
            rank = math.ceil(quantile * (total - 1))
            # torch's kthvalue takes ten times as long, and refuses to be deterministic on a GPU.
            threshold = np.partition(column.cpu().numpy(), rank)[rank].item()
            best = torch.where(column < threshold, column, -1).max()
            if best < 0:
                raise BadValue(
                    f"AnchorEstimator finds no prediction for class {i} below its quantile {quantile:.4g} of {total}"
                    " examples: add examples, or pass a lower quantile or quantile=None."
                )
            rows.append(lexicographic_max(probs[column == best]))
        return torch.stack(rows)
