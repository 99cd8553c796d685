"""What a transition matrix with structure must be able to do for the corrected losses."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class StructuredTransition(Protocol):
    """A row-stochastic T, ``T[i, j] = p(noisy = j | clean = i)``, that is never written out as a dense matrix."""

    @property
    def num_classes(self) -> int:
        """The number of classes C."""

    def log_likelihood(self, log_p: Tensor, target: Tensor) -> Tensor:
        """``log (p T)_y``: from log-probabilities ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""

    def log_posterior(self, log_p: Tensor) -> Tensor:
        """``log p T``: from log-probabilities ``(M, C)`` to ``(M, C)``."""

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``."""
