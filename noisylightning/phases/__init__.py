"""Phases of a fit, one after the other: on noisy labels, estimation of T, with the correction, on trusted labels.

A new phase is a subclass of :class:`Phase` in a file of its own, and an entry in the list that :class:`RunPhases` runs.
"""

from noisylightning.phases.base import Candidate, Chosen, Fit, Memory, Phase
from noisylightning.phases.correction import CorrectionPhase
from noisylightning.phases.engine import RunPhases, began_untrained
from noisylightning.phases.estimation import EstimationPhase
from noisylightning.phases.folds import FoldsPhase, Plan
from noisylightning.phases.held_out import HeldOutPhase, held_out_predictions
from noisylightning.phases.joint import trusted_in
from noisylightning.phases.noisy_labels import NoisyLabelsPhase
from noisylightning.phases.refinement import RefinementPhase
from noisylightning.phases.trusted import TrustedPhase

__all__ = [
    "Candidate",
    "Chosen",
    "CorrectionPhase",
    "EstimationPhase",
    "Fit",
    "FoldsPhase",
    "HeldOutPhase",
    "Memory",
    "NoisyLabelsPhase",
    "Phase",
    "Plan",
    "RefinementPhase",
    "RunPhases",
    "TrustedPhase",
    "began_untrained",
    "held_out_predictions",
    "trusted_in",
]
