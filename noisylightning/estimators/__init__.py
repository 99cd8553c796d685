"""Estimators of T from a network's predictions and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.crowd import CrowdEstimator
from noisylightning.estimators.trusted import TrustedDataEstimator

__all__ = [
    "AnchorEstimator",
    "CrowdEstimator",
    "EstimatorFactory",
    "TransitionEstimator",
    "TrustedDataEstimator",
    "check_needs",
]
