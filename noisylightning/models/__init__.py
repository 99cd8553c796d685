"""Backbones: networks that map inputs to logits."""
