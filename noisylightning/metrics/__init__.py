"""Metrics that tell from noisy labels how good a network is on clean ones."""

from noisylightning.metrics.clean_accuracy import CleanAccuracy, CleanConfusionMatrix
from noisylightning.metrics.paired import PairedCleanAccuracy
from noisylightning.metrics.prediction_powered import PredictionPoweredAccuracy

__all__ = ["CleanAccuracy", "CleanConfusionMatrix", "PairedCleanAccuracy", "PredictionPoweredAccuracy"]
