"""Backbones: modules that map a batch of inputs to logits ``(N, C)``."""

from noisylightning.models.mlp import MLP

__all__ = ["MLP"]
