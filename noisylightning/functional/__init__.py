"""Pure tensor mathematics: corrected and base losses as functions."""

from noisylightning.functional._checks import validate_target
from noisylightning.functional._protocol import StructuredTransition
from noisylightning.functional.backward import backward_cross_entropy, inverse_rows, invert_transition
from noisylightning.functional.forward import forward_cross_entropy, noisy_log_likelihood, noisy_log_posterior

__all__ = [
    "StructuredTransition",
    "backward_cross_entropy",
    "forward_cross_entropy",
    "inverse_rows",
    "invert_transition",
    "noisy_log_likelihood",
    "noisy_log_posterior",
    "validate_target",
]
