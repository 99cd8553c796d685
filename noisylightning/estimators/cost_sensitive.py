"""The estimators of T by selective classification."""

from typing import Any

import torch
from torch import Tensor

from noisylightning.estimators.with_features import FeatureEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.selective import Method, Selected, selective_classification


class CostSensitiveEstimator(FeatureEstimator):
    """T from samples that classifiers are surest of.

    It is :func:`~noisylightning.functional.selective.selective_classification`, on the samples in the order of their
    index. ``found`` holds the accepted samples and, of the method "prefix", finite-sample bounds.

    Standard errors are those of labels drawn anew for the accepted samples, not of another choice of these.

    Args:
        num_classes: Number of classes C.
        method: ``"prefix"`` takes the purest prefix of a ranking, ``"cost"`` the purest of cost-sensitive classifiers,
            which takes 19 fits a class.
        min_accepted: The least share of samples to accept for a row.
        confidence: Probability with which all bounds hold together.
        seed: Seed of the halves of the data.
        replicates: As in :class:`TransitionEstimator`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Attributes:
        found: The :class:`~noisylightning.functional.selective.Selected` of the last ``compute``; None before.

    Raises:
        ValueError: From ``compute``, as that function, or if the index of a sample is unknown.

    Example:
        >>> from noisylightning.predictions import Predictions
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.arange(4000) % 2
        >>> features = torch.randn(4000, 1, generator=generator) + 6 * clean[:, None]
        >>> noisy = torch.multinomial(torch.tensor([[0.8, 0.2], [0.3, 0.7]])[clean], 1, generator=generator).flatten()
        >>> estimator = CostSensitiveEstimator(num_classes=2, min_accepted=0.2)
        >>> estimator.update(Predictions(torch.zeros(4000, 2), noisy, features=features))
        >>> estimator.compute().round(decimals=1)
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
        >>> bool((estimator.found.lower < estimator.compute()).all())
        True
    """

    found: Selected | None

    def __init__(
        self,
        num_classes: int,
        method: Method = "prefix",
        min_accepted: float = 0.005,
        confidence: float = 0.95,
        seed: int = 0,
        replicates: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        self.method: Method = method
        self.min_accepted, self.confidence, self.seed = min_accepted, confidence, seed
        self.found = None

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        self.found = self._find()
        return self.found.transition.float().to(self.device)

    def _find(self) -> Selected:
        features, labels, _ = self.ordered()
        return selective_classification(
            features,
            labels,
            self.num_classes,
            method=self.method,
            min_accepted=self.min_accepted,
            confidence=self.confidence,
            seed=self.seed,
        )

    def _replicated(self) -> Tensor:
        found, (_, labels, index) = self._find(), self.ordered()
        labels, index = labels.cpu(), index.cpu()
        counts = torch.zeros(self.replicates, self.num_classes, self.num_classes, dtype=torch.long)
        for row, places in enumerate(found.accepted):
            weights = bootstrap_weights(index[places], self.replicates)[:, 1:].t()
            counts[:, row].index_add_(1, labels[places], weights)
        return counts.double() / counts.sum(dim=2, keepdim=True)
