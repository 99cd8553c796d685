"""Estimators of T from a network's predictions and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs
from noisylightning.estimators.part_dependent import PartDependentEstimator

__all__ = ["AnchorEstimator", "EstimatorFactory", "PartDependentEstimator", "TransitionEstimator", "check_needs"]
