"""Base losses: modules that can return the whole vector l(p), which is what every correction is built from."""

from noisylightning.losses.active_passive import ActivePassiveLoss
from noisylightning.losses.base import LikelihoodLoss, Loss
from noisylightning.losses.bootstrap import HardBootstrap, SoftBootstrap
from noisylightning.losses.cross_entropy import CrossEntropy
from noisylightning.losses.early_learning import EarlyLearningRegularization
from noisylightning.losses.focal import FocalLoss
from noisylightning.losses.generalized import GeneralizedCrossEntropy, TruncatedGeneralizedCrossEntropy
from noisylightning.losses.margin import RampLoss, SavageLoss, SigmoidLoss, UnhingedLoss
from noisylightning.losses.smoothing import LabelSmoothing
from noisylightning.losses.square import SquareLoss
from noisylightning.losses.symmetric import (
    MeanAbsoluteError,
    NormalizedCrossEntropy,
    ReverseCrossEntropy,
    SymmetricCrossEntropy,
)
from noisylightning.losses.tempered import BiTemperedLoss
from noisylightning.losses.weighted import SampleWeighted

__all__ = [
    "ActivePassiveLoss",
    "BiTemperedLoss",
    "CrossEntropy",
    "EarlyLearningRegularization",
    "FocalLoss",
    "GeneralizedCrossEntropy",
    "HardBootstrap",
    "LabelSmoothing",
    "LikelihoodLoss",
    "Loss",
    "MeanAbsoluteError",
    "NormalizedCrossEntropy",
    "RampLoss",
    "ReverseCrossEntropy",
    "SampleWeighted",
    "SavageLoss",
    "SigmoidLoss",
    "SoftBootstrap",
    "SquareLoss",
    "SymmetricCrossEntropy",
    "TruncatedGeneralizedCrossEntropy",
    "UnhingedLoss",
]
