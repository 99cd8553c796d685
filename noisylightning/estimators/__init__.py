"""Estimators of T from a network's predictions and the noisy labels."""

from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import TransitionEstimator

__all__ = ["AnchorEstimator", "TransitionEstimator"]
