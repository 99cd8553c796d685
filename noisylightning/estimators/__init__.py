"""Estimators of T from a network's predictions, or from features, and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.clusterability import ClusterabilityEstimator
from noisylightning.estimators.cost_sensitive import CostSensitiveEstimator
from noisylightning.estimators.simplex import SimplexEstimator

__all__ = [
    "AnchorEstimator",
    "ClusterabilityEstimator",
    "CostSensitiveEstimator",
    "EstimatorFactory",
    "SimplexEstimator",
    "TransitionEstimator",
    "check_needs",
]
