"""The baseline: the base loss as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from noisylightning.corrections.base import Correction
from noisylightning.errors import BadType
from noisylightning.losses import Loss
from noisylightning.tensors import log_softmax


class NoCorrection(Correction):
    """The base loss as it is: the baseline. It carries no T.

    Args:
        num_classes: The number of classes C; not needed.
        loss: The base loss. Default: cross-entropy.

    Example:
        >>> import torch
        >>> NoCorrection()(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """

    uses_transition: ClassVar[bool] = False

    def __init__(self, num_classes: int | None = None, loss: Loss | None = None) -> None:
        super().__init__(loss=loss)
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int | None:
        """The number of classes C, or None as long as nobody said it."""
        return self._num_classes

    def _begin(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def set_transition(
        self, transition: Tensor, details: Mapping[str, Tensor] | None = None, learn: bool = True
    ) -> None:
        """Refuse: there is nothing that would use it.

        Raises:
            TypeError: Always.
        """
        raise BadType("NoCorrection uses no T: choose ForwardCorrection or another correction.")

    def noisy_log_posterior(
        self,
        logits: Tensor,
        index: Tensor | None = None,
        features: Tensor | None = None,
        trusted: Tensor | None = None,
    ) -> Tensor:
        """``log p``: without a T the network speaks about noisy labels directly."""
        return log_softmax(logits)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor | None = None,
        features: Tensor | None = None,
        trusted: Tensor | None = None,
    ) -> Tensor:
        """The base loss; arguments as in :meth:`Correction.forward`."""
        return self.loss(logits, target, *((index,) if self.loss.needs_index and index is not None else ()))
