"""Metrics of noisy labels, as torchmetrics."""

from noisylightning.metrics.memorisation import Memorisation

__all__ = ["Memorisation"]
