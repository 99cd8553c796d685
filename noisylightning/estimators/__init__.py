"""Estimators of T from a network's predictions, or from features, and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.clusterability import ClusterabilityEstimator
from noisylightning.estimators.confident_joint import ConfidentJointEstimator
from noisylightning.estimators.consensus import ConsensusEstimator
from noisylightning.estimators.cost_sensitive import CostSensitiveEstimator
from noisylightning.estimators.crowd import CrowdEstimator
from noisylightning.estimators.dual import DualTEstimator
from noisylightning.estimators.part_dependent import PartDependentEstimator
from noisylightning.estimators.simplex import SimplexEstimator
from noisylightning.estimators.trusted import TrustedDataEstimator

__all__ = [
    "AnchorEstimator",
    "ClusterabilityEstimator",
    "ConfidentJointEstimator",
    "ConsensusEstimator",
    "CostSensitiveEstimator",
    "CrowdEstimator",
    "DualTEstimator",
    "EstimatorFactory",
    "PartDependentEstimator",
    "SimplexEstimator",
    "TransitionEstimator",
    "TrustedDataEstimator",
    "check_needs",
]
