"""Callbacks: where T comes from, when training begins again with it, and how it goes on."""

from noisylightning.callbacks.estimate import EstimateTransitionCallback
from noisylightning.callbacks.fine_tune import FineTuneOnTrusted
from noisylightning.callbacks.head_first import HeadFirst
from noisylightning.callbacks.known import KnownTransitionCallback
from noisylightning.callbacks.memorisation import MemorisationStopping
from noisylightning.callbacks.mixing import CutMix, Mixup

__all__ = [
    "CutMix",
    "EstimateTransitionCallback",
    "FineTuneOnTrusted",
    "HeadFirst",
    "KnownTransitionCallback",
    "MemorisationStopping",
    "Mixup",
]
