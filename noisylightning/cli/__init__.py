"""The command ``noisylightning``: LightningCLI over all models, data modules, corrections and estimators."""

from noisylightning.cli.commands import NoisyLightningCLI, main

__all__ = ["NoisyLightningCLI", "main"]
