"""Backward correction: a combination of base losses, unbiased for the clean one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisylightning.corrections.base import Correction
from noisylightning.errors import BadValue
from noisylightning.functional.backward import inverse_rows, masked_backward_cross_entropy
from noisylightning.losses import Loss
from noisylightning.transition import Transition


class BackwardCorrection(Correction):
    """Backward correction: ``(T^-1 l(p))_y``, unbiased for the clean loss.

    Patrini et al. (2017), Theorem 1: ``sum_j T[i, j] (T^-1 l)_j = l_i`` for every base loss. It is unbounded below
    and amplifies the loss, and its noise, by up to the condition number of T. Class weights belong to clean classes.

    Args:
        transition: T, see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy.
        max_condition: Refuse a T whose condition number (infinity norm: the largest absolute row sum of ``T^-1``) is
            larger.

    Raises:
        ValueError: T is singular, or its condition number past ``max_condition``.

    Example:
        >>> correction = BackwardCorrection(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.0613)
    """

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        max_condition: float = 1e4,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        if not max_condition >= 1:
            raise BadValue(f"max_condition must be at least 1, that of the identity, got {max_condition}.")
        self.max_condition = max_condition
        if self.T is not None:
            self.T.factorize(max_condition)

    def _begin(self, num_classes: int) -> None:
        super()._begin(num_classes)
        self.known_transition().factorize(self.max_condition)

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced combination of base losses; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        if loss.is_cross_entropy and not labels.is_floating_point():
            return masked_backward_cross_entropy(logits, labels, mask, transition, loss.weight, loss.reduction)
        weights = inverse_rows(labels, transition, torch.promote_types(logits.dtype, torch.float32))
        return loss.reduce(loss.values(logits, loss.weighted(weights), *index), labels, mask, weighted=True)
