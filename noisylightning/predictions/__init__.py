"""Predictions of a network over a data set: collected once, in order, nothing twice, on one process or many."""

from noisylightning.predictions.gather import gather
from noisylightning.predictions.record import Predictions
from noisylightning.predictions.writer import PredictionWriter

__all__ = ["PredictionWriter", "Predictions", "gather"]
