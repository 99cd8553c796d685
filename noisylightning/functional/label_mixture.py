"""Labels as a mixture over a hidden class, fitted by expectation maximisation (Dawid and Skene 1979)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisylightning.errors import BadValue

_BLOCK = 2**22  # joint probabilities at a time
_MAX_STEPS = 5000


@dataclass(frozen=True)
class LabelMixture:
    r"""A distribution of tuples of labels, :math:`\sum_i p_i \prod_k T^{(a_k)}_{i y_k}`, i the hidden class.

    Args:
        prior: p, shape ``(C,)``, float64.
        tables: The row-stochastic T of each annotator, ``(A, C, C)``, float64.
        annotators: Whose label each of the K places of a tuple is, ``a_k``; the same annotator may have several.
        log_likelihood: The mean over tuples, of the fit.
    """

    prior: Tensor
    tables: Tensor
    annotators: tuple[int, ...]
    log_likelihood: float = -torch.inf

    def fit(self, tuples: Tensor, weights: Tensor, tolerance: float = 1e-6) -> "LabelMixture":
        """Maximise the likelihood by expectation maximisation, from here.

        Steps are extrapolated (SQUAREM, Varadhan and Roland 2008) where that raises the likelihood, which no step
        lowers. Time and memory do not depend on the number of tuples that are possible, C^K.

        Args:
            tuples: Labels, integers of shape ``(U, K)``.
            weights: How often each tuple was seen, shape ``(U,)``.
            tolerance: It has converged when a step changes no probability by more.

        Returns:
            The fit.

        Raises:
            ValueError: If it does not converge.

        Example:
            >>> table = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
            >>> tuples = torch.cartesian_prod(*3 * [torch.arange(2)])
            >>> weights = torch.einsum("ia,ib,ic->abc", table, table, table).flatten() / 2
            >>> start = start_of(2, (0, 0, 0))
            >>> start.fit(tuples, weights, tolerance=1e-9).tables[0]
            tensor([[0.8000, 0.2000],
                    [0.3000, 0.7000]], dtype=torch.float64)
        """
        weights = weights.double() / weights.sum()
        now = self
        for _ in range(_MAX_STEPS // 3):
            first = now._step(tuples, weights)
            if first._change(now) <= tolerance:
                return first
            second = first._step(tuples, weights)
            now = now._extrapolated(first, second)._step(tuples, weights)
            # a step carries the likelihood of where it began
            if not now.log_likelihood >= second.log_likelihood:
                now = second
        raise BadValue(
            f"The fit to the labels of neighbours did not converge in {_MAX_STEPS} steps (the last changed a"
            f" probability by {first._change(now):.2g}): give more samples, or another estimator."
        )

    def _step(self, tuples: Tensor, weights: Tensor) -> "LabelMixture":
        prior, log_likelihood = torch.zeros_like(self.prior), 0.0
        counts = torch.zeros_like(self.tables.transpose(1, 2))  # by label and class
        columns = self.tables.transpose(1, 2)
        for labels, weight in zip(
            *(part.split(max(1, _BLOCK // len(prior))) for part in (tuples, weights)), strict=True
        ):
            joint = self.prior.expand(len(labels), -1)
            for annotator, label in zip(self.annotators, labels.unbind(dim=1), strict=True):
                joint = joint * columns[annotator].index_select(0, label)
            total = joint.sum(dim=1)
            log_likelihood += float(torch.special.xlogy(weight, total).sum())
            share = joint * torch.where(weight > 0, weight / total, 0)[:, None]
            prior += share.sum(dim=0)
            for annotator, label in zip(self.annotators, labels.unbind(dim=1), strict=True):
                counts[annotator].index_add_(0, label, share)
        counts = counts.transpose(1, 2)
        sums = counts.sum(dim=2, keepdim=True)
        tables = torch.where(sums > 0, counts / sums, self.tables)  # a class of no sample keeps its row
        return replace(self, prior=prior, tables=tables, log_likelihood=log_likelihood)

    def _change(self, other: "LabelMixture") -> float:
        return max(float((a - b).abs().max()) for a, b in ((self.prior, other.prior), (self.tables, other.tables)))

    def _extrapolated(self, first: "LabelMixture", second: "LabelMixture") -> "LabelMixture":
        one = [first.prior - self.prior, first.tables - self.tables]
        two = [second.prior - first.prior - one[0], second.tables - first.tables - one[1]]
        curvature = sum(float(part.square().sum()) for part in two)
        length = (sum(float(part.square().sum()) for part in one) / curvature) ** 0.5 if curvature > 0 else 1.0
        length = max(1.0, length)
        prior = self.prior + 2 * length * one[0] + length**2 * two[0]
        tables = self.tables + 2 * length * one[1] + length**2 * two[1]
        # Where it leaves the simplex, it keeps a tenth of what the second step gave.
        prior = torch.where(prior > 0, prior, second.prior / 10)
        tables = torch.where(tables > 0, tables, second.tables / 10)
        return replace(self, prior=prior / prior.sum(), tables=tables / tables.sum(dim=2, keepdim=True))


def start_of(num_classes: int, annotators: Sequence[int], seed: int | None = None) -> LabelMixture:
    """Return a mixture to start a fit from: every annotator is right with probability 0.6 at least.

    Args:
        num_classes: The number of classes C.
        annotators: As in :class:`LabelMixture`.
        seed: Draws how wrong labels are spread; evenly where it is left out.

    Returns:
        The mixture, its prior even.
    """
    shape = 1 + max(annotators), num_classes, num_classes
    spread = torch.ones(shape, dtype=torch.float64)
    if seed is not None:
        uniform = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        spread = -(1 - uniform).log() + 1e-3
    tables = 0.6 * torch.eye(num_classes, dtype=torch.float64) + 0.4 * spread / spread.sum(dim=2, keepdim=True)
    return LabelMixture(torch.full((num_classes,), 1 / num_classes, dtype=torch.float64), tables, tuple(annotators))
