"""Callbacks: where T comes from, and when training begins again with it."""

from noisylightning.callbacks.estimate import EstimateTransitionCallback
from noisylightning.callbacks.fine_tune import FineTuneOnTrusted
from noisylightning.callbacks.known import KnownTransitionCallback
from noisylightning.callbacks.memorisation import MemorisationStopping

__all__ = ["EstimateTransitionCallback", "FineTuneOnTrusted", "KnownTransitionCallback", "MemorisationStopping"]
