"""Data modules with noisy labels, and the noise."""

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.cifar import CIFAR10DataModule, CIFAR10NDataModule, CIFAR100DataModule, CIFAR100NDataModule
from noisylightning.data.digits import DigitsDataModule
from noisylightning.data.human import ConfusionNoise, HumanNoise
from noisylightning.data.image import Normalize, RandomCropFlip
from noisylightning.data.manifest import NoisyLabels
from noisylightning.data.mnist import FashionMNISTDataModule, MNISTDataModule
from noisylightning.data.noise import (
    AsymmetricNoise,
    InstanceDependentNoise,
    LabelNoise,
    PairFlipNoise,
    SymmetricNoise,
    TransitionNoise,
    measure_transition,
)

__all__ = [
    "AsymmetricNoise",
    "CIFAR10DataModule",
    "CIFAR10NDataModule",
    "CIFAR100DataModule",
    "CIFAR100NDataModule",
    "ConfusionNoise",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "HumanNoise",
    "InstanceDependentNoise",
    "LabelNoise",
    "MNISTDataModule",
    "NoisyDataModule",
    "NoisyLabels",
    "Normalize",
    "PairFlipNoise",
    "RandomCropFlip",
    "SymmetricNoise",
    "TransitionNoise",
    "measure_transition",
]
