"""Data modules with noisy labels, and the noise."""

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.digits import DigitsDataModule
from noisylightning.data.mnist import MNISTDataModule
from noisylightning.data.noise import (
    AsymmetricNoise,
    LabelNoise,
    NoisyLabels,
    PairFlipNoise,
    SymmetricNoise,
    TransitionNoise,
)

__all__ = [
    "AsymmetricNoise",
    "DigitsDataModule",
    "LabelNoise",
    "MNISTDataModule",
    "NoisyDataModule",
    "NoisyLabels",
    "PairFlipNoise",
    "SymmetricNoise",
    "TransitionNoise",
]
