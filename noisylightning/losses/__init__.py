"""Base losses: modules that can return the whole vector l(p), which is what every correction is built from."""

from noisylightning.losses.base import LikelihoodLoss, Loss
from noisylightning.losses.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy", "LikelihoodLoss", "Loss"]
