"""Train classifiers on wrong labels: loss correction in PyTorch Lightning.

Everywhere T is row-stochastic: T[i, j] = p(noisy = j | clean = i).
"""

from noisylightning.callback import EstimateTransitionCallback, KnownTransitionCallback
from noisylightning.corrections import BackwardCorrection, Correction, ForwardCorrection, NoCorrection
from noisylightning.estimators import AnchorEstimator, TransitionEstimator
from noisylightning.module import NoisyLabelClassifier

__version__ = "0.1.0"

__all__ = [
    "AnchorEstimator",
    "BackwardCorrection",
    "Correction",
    "EstimateTransitionCallback",
    "ForwardCorrection",
    "KnownTransitionCallback",
    "NoCorrection",
    "NoisyLabelClassifier",
    "TransitionEstimator",
]
