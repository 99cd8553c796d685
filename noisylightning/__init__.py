"""Train classifiers on wrong labels: loss correction in PyTorch Lightning.

Everywhere T is row-stochastic: T[i, j] = p(noisy = j | clean = i).
"""

from noisylightning.callbacks import (
    CutMix,
    EstimateTransitionCallback,
    FineTuneOnTrusted,
    HeadFirst,
    KnownTransitionCallback,
    MemorisationStopping,
    Mixup,
)
from noisylightning.corrections import (
    BackwardCorrection,
    Correction,
    ForwardCorrection,
    ImportanceReweighting,
    NoCorrection,
)
from noisylightning.estimators import (
    AnchorEstimator,
    ClusterabilityEstimator,
    ConfidentJointEstimator,
    ConsensusEstimator,
    CostSensitiveEstimator,
    CrowdEstimator,
    DualTEstimator,
    PartDependentEstimator,
    SimplexEstimator,
    TransitionEstimator,
    TrustedDataEstimator,
)
from noisylightning.module import NoisyLabelClassifier

__version__ = "0.1.0"

__all__ = [
    "AnchorEstimator",
    "BackwardCorrection",
    "ClusterabilityEstimator",
    "ConfidentJointEstimator",
    "ConsensusEstimator",
    "Correction",
    "CostSensitiveEstimator",
    "CrowdEstimator",
    "CutMix",
    "DualTEstimator",
    "EstimateTransitionCallback",
    "FineTuneOnTrusted",
    "ForwardCorrection",
    "HeadFirst",
    "ImportanceReweighting",
    "KnownTransitionCallback",
    "MemorisationStopping",
    "Mixup",
    "NoCorrection",
    "NoisyLabelClassifier",
    "PartDependentEstimator",
    "SimplexEstimator",
    "TransitionEstimator",
    "TrustedDataEstimator",
]
