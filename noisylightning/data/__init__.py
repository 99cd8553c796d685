"""Data modules with noisy labels, and the noise."""

from noisylightning.data.arrays import ArrayDataModule
from noisylightning.data.base import NoisyDataModule
from noisylightning.data.cifar import CIFAR10DataModule, CIFAR10NDataModule, CIFAR100DataModule, CIFAR100NDataModule
from noisylightning.data.clothing1m import Clothing1MDataModule
from noisylightning.data.crowd import CrowdDataModule, LabelMeDataModule
from noisylightning.data.dataset import DatasetDataModule, WrappedDataModule
from noisylightning.data.digits import DigitsDataModule
from noisylightning.data.features import FeaturesDataModule
from noisylightning.data.folder import ImageFolderDataModule, ImageListDataModule
from noisylightning.data.huggingface import HuggingFaceDataModule
from noisylightning.data.human import ConfusionNoise, HumanNoise
from noisylightning.data.image import Normalize, RandomCropFlip
from noisylightning.data.imdb import IMDBDataModule
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
from noisylightning.data.noisy_labels import NoisyLabels
from noisylightning.data.relabel import Relabel
from noisylightning.data.table import TableDataModule
from noisylightning.data.text import NoisyTextDataModule, TextTableDataModule
from noisylightning.data.text_encoder import TextEncoder

__all__ = [
    "ArrayDataModule",
    "AsymmetricNoise",
    "CIFAR10DataModule",
    "CIFAR10NDataModule",
    "CIFAR100DataModule",
    "CIFAR100NDataModule",
    "Clothing1MDataModule",
    "ConfusionNoise",
    "CrowdDataModule",
    "DatasetDataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FeaturesDataModule",
    "HuggingFaceDataModule",
    "HumanNoise",
    "IMDBDataModule",
    "ImageFolderDataModule",
    "ImageListDataModule",
    "InstanceDependentNoise",
    "LabelMeDataModule",
    "LabelNoise",
    "MNISTDataModule",
    "NoisyDataModule",
    "NoisyLabels",
    "NoisyTextDataModule",
    "Normalize",
    "PairFlipNoise",
    "RandomCropFlip",
    "Relabel",
    "SymmetricNoise",
    "TableDataModule",
    "TextEncoder",
    "TextTableDataModule",
    "TransitionNoise",
    "WrappedDataModule",
    "measure_transition",
]
