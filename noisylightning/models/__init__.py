"""Backbones: networks that map a batch of inputs to logits ``(N, C)``."""

from noisylightning.models.batchnorm_head import BatchNormHead
from noisylightning.models.features import feature_extractor, record_features, with_features
from noisylightning.models.head import encoder_modules, encoder_parameters, head_of
from noisylightning.models.mlp import MLP
from noisylightning.models.outputs import looks_like_probabilities, require_logits
from noisylightning.models.pretrained import HuggingFaceClassifier, TimmModel, TorchvisionModel
from noisylightning.models.resnet import CIFARResNet, ResNet34
from noisylightning.models.standardize import Standardize
from noisylightning.models.text import EmbeddingClassifier, LSTMClassifier, TransformerClassifier

__all__ = [
    "MLP",
    "BatchNormHead",
    "CIFARResNet",
    "EmbeddingClassifier",
    "HuggingFaceClassifier",
    "LSTMClassifier",
    "ResNet34",
    "Standardize",
    "TimmModel",
    "TorchvisionModel",
    "TransformerClassifier",
    "encoder_modules",
    "encoder_parameters",
    "feature_extractor",
    "head_of",
    "looks_like_probabilities",
    "record_features",
    "require_logits",
    "with_features",
]
