"""Metrics that tell from noisy labels what clean ones would tell, as torchmetrics."""

from noisylightning.metrics.clean_accuracy import CleanAccuracy, CleanConfusionMatrix
from noisylightning.metrics.memorisation import Memorisation
from noisylightning.metrics.paired import PairedCleanAccuracy
from noisylightning.metrics.prediction_powered import PredictionPoweredAccuracy

__all__ = [
    "CleanAccuracy",
    "CleanConfusionMatrix",
    "Memorisation",
    "PairedCleanAccuracy",
    "PredictionPoweredAccuracy",
]
