"""The clusterability estimator of T: from features, without a network."""

from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from noisylightning.estimators.with_features import FeatureEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.functional.clusterability import Clusters, clusterability

_LARGEST_MISMATCH = 0.1


class ClusterabilityEstimator(FeatureEstimator):
    """T from samples whose neighbours share their class (Zhu et al., ICML 2021).

    It is :func:`~noisylightning.functional.clusterability.clusterability`, on the samples in the order of their index.
    It needs no network: the command runs it on the data's own inputs, ``estimate --data ...``. What it finds about
    itself is in ``found``; where more than one in ten neighbours are of other classes, beyond chance, it warns.

    Standard errors are those of labels drawn anew for the same triples; the bias that neighbours of other classes
    leave they do not count.

    Args:
        num_classes: Number of classes C.
        neighbours: How many nearest neighbours are looked at: two for a triple, the others for its surroundings.
        share: The share of triples to keep, those of the purest surroundings; chosen from the data by default.
        queries: How many samples at most are the middle of a triple.
        approximate: Whether neighbours may be approximate; by default among more than 2^18 samples on the processor, if
            faiss is installed.
        seed: Seed of their draw, and of the fit's starts.
        replicates: As in :class:`TransitionEstimator`.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Attributes:
        found: The :class:`~noisylightning.functional.clusterability.Clusters` of the last ``compute``; None before.

    Raises:
        ValueError: From ``compute``, as that function, or if the index of a sample is unknown.

    Example:
        >>> import torch
        >>> from noisylightning.predictions import Predictions
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.arange(3000) % 2
        >>> features = torch.randn(3000, 2, generator=generator) + 6 * clean[:, None]
        >>> noisy = torch.multinomial(torch.tensor([[0.8, 0.2], [0.3, 0.7]])[clean], 1, generator=generator).flatten()
        >>> estimator = ClusterabilityEstimator(num_classes=2)
        >>> estimator.update(Predictions(torch.zeros(3000, 2), noisy, features=features))
        >>> estimator.compute().round(decimals=1)
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """

    found: Clusters | None

    def __init__(
        self,
        num_classes: int,
        neighbours: int = 30,
        share: float | None = None,
        queries: int = 2**16,
        approximate: bool | None = None,
        seed: int = 0,
        replicates: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, replicates, **kwargs)
        self.neighbours, self.share, self.queries, self.seed = neighbours, share, queries, seed
        self.approximate = approximate
        self.found = None

    def compute(self) -> Tensor:
        """Return T-hat, ``(C, C)``, rows sum to one."""
        self.found = self._find()
        if self.found.mismatch > _LARGEST_MISMATCH + self.found.noise:
            rank_zero_warn(
                f"About {self.found.mismatch:.0%} of nearest neighbours are of another class, as far as labels show it,"
                " so that T-hat may be too even: take features of a better network, or another estimator.",
            )
        return self.found.transition.float().to(self.device)

    def _find(self) -> Clusters:
        features, labels, _ = self.ordered()
        return clusterability(
            features,
            labels,
            self.num_classes,
            neighbours=self.neighbours,
            share=self.share,
            queries=self.queries,
            approximate=self.approximate,
            seed=self.seed,
        )

    def _replicated(self) -> Tensor:
        found = self._find()
        index = self.ordered()[2].cpu()[found.places]
        return found.replicated(bootstrap_weights(index, self.replicates)[:, 1:])
