"""Corrections: modules that carry T and turn a base loss into one that may be trained on noisy labels."""

from noisylightning.corrections.backward import BackwardCorrection
from noisylightning.corrections.base import Correction
from noisylightning.corrections.forward import ForwardCorrection
from noisylightning.corrections.importance import ImportanceReweighting
from noisylightning.corrections.none import NoCorrection

__all__ = ["BackwardCorrection", "Correction", "ForwardCorrection", "ImportanceReweighting", "NoCorrection"]
