"""T from trusted samples (GLC)."""

from typing import Any

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.estimators.base import TransitionEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.trusted import check_pseudo_counts, check_trusted_classes, trusted_moments, trusted_rows
from noisylightning.predictions.record import Predictions


class TrustedDataEstimator(TransitionEstimator):
    """T from samples whose clean labels are known (GLC, Hendrycks et al., NeurIPS 2018).

    It is :func:`~noisylightning.functional.trusted_transition`, fed batch by batch: row i is the mean of p(noisy | x)
    over the trusted samples of class i, to which their own noisy labels are added where they are known. Samples without
    a clean label are passed over. Memory: C rows of integers, whatever the number of samples.

    Within a fit, and from a checkpoint, the data module's trusted samples are what it reads.

    Args:
        num_classes: Number of classes C.
        pseudo_counts: How many noisy labels the mean prediction of a class counts for; infinite for GLC itself.
        **kwargs: ``replicates``, or passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``pseudo_counts`` is not positive; from ``compute`` if a class has no trusted sample; from
            ``standard_error`` if a class has so few that a replicate has none.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5]])
        >>> estimator = TrustedDataEstimator(num_classes=2)
        >>> noisy, clean = torch.tensor([-1, -1, -1, 0]), torch.tensor([0, 0, 1, -1])
        >>> estimator.update(Predictions.from_probs(probs, noisy, clean_labels=clean))
        >>> estimator.compute()
        tensor([[0.7000, 0.3000],
                [0.1000, 0.9000]])
    """

    needs = frozenset({"clean_labels"})

    moments: Tensor

    def __init__(self, num_classes: int, pseudo_counts: float = 100.0, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        check_pseudo_counts(pseudo_counts)
        self.pseudo_counts = pseudo_counts
        empty = torch.zeros(self.replicates + 1, num_classes, 1 + 2 * num_classes, dtype=torch.long)
        self.add_state("moments", empty, dist_reduce_fx="sum")

    def _accumulate(self, batch: Predictions) -> None:
        if batch.clean_labels is None:
            return
        trusted = batch.select(batch.clean_labels >= 0)
        assert trusted.clean_labels is not None
        for moments, weights in zip(self.moments, bootstrap_weights(trusted.index, self.replicates).T, strict=True):
            moments += trusted_moments(trusted.probs, trusted.clean_labels, trusted.noisy_labels, weights)

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        check_trusted_classes(self.moments[0, :, 0])
        return trusted_rows(self.moments[0], self.pseudo_counts).float()

    def _replicated(self) -> Tensor:
        fewest = int(self.moments[1:, :, 0].amin(dim=0).argmin())
        if not (self.moments[1:, :, 0] > 0).all():
            raise BadValue(
                f"The {int(self.moments[0, fewest, 0])} trusted samples of class {fewest} are too few for a standard"
                " error, as a replicate has none of them: trust some ten of each class, or pass replicates=0."
            )
        return trusted_rows(self.moments[1:], self.pseudo_counts)
