"""Backbones: networks that map a batch of inputs to logits ``(N, C)``."""

from noisylightning.models.mlp import MLP
from noisylightning.models.resnet import CIFARResNet, ResNet34

__all__ = ["MLP", "CIFARResNet", "ResNet34"]
