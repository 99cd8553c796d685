"""Train classifiers on wrong labels: loss correction in PyTorch Lightning.

Everywhere T is row-stochastic: T[i, j] = p(noisy = j | clean = i).
"""

from noisylightning.callbacks import (
    EstimateTransitionCallback,
    FineTuneOnTrusted,
    KnownTransitionCallback,
    MemorisationStopping,
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
    "DualTEstimator",
    "EstimateTransitionCallback",
    "FineTuneOnTrusted",
    "ForwardCorrection",
    "ImportanceReweighting",
    "KnownTransitionCallback",
    "MemorisationStopping",
    "NoCorrection",
    "NoisyLabelClassifier",
    "PartDependentEstimator",
    "SimplexEstimator",
    "TransitionEstimator",
    "TrustedDataEstimator",
]
