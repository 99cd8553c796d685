"""Estimators of T from a network's predictions and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.confident_joint import ConfidentJointEstimator
from noisylightning.estimators.consensus import ConsensusEstimator
from noisylightning.estimators.dual import DualTEstimator
from noisylightning.estimators.part_dependent import PartDependentEstimator

__all__ = [
    "AnchorEstimator",
    "ConfidentJointEstimator",
    "ConsensusEstimator",
    "DualTEstimator",
    "EstimatorFactory",
    "PartDependentEstimator",
    "TransitionEstimator",
    "check_needs",
]
