"""Importance reweighting: the base loss, weighted by the ratio of the posteriors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisylightning.corrections.base import Correction
from noisylightning.errors import BadValue
from noisylightning.functional.posterior import importance_ratio
from noisylightning.losses import LikelihoodLoss, Loss
from noisylightning.tensors import log_softmax, pick
from noisylightning.transition import Transition


class ImportanceReweighting(Correction):
    """Importance reweighting: ``beta l_y(p)`` with ``beta = p_y / (p T)_y``.

    Liu and Tao (2016), with T as in Xia et al. (2019, T-Revision): the ratio of the clean to the noisy posterior of
    the label turns the noisy risk into the clean one.

    Args:
        transition: T, see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy.
        detach_weight: Whether beta is a constant for the gradient, as in T-Revision's first stage; its last stage
            differentiates it, as a T that learns needs.

    Raises:
        ValueError: T learns, and ``detach_weight`` gives it no gradient; or as in :class:`Correction`.

    Example:
        >>> correction = ImportanceReweighting(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.5028)
    """

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        detach_weight: bool = True,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        self.detach_weight = detach_weight
        if detach_weight and self.T is not None and any(part.requires_grad for part in self.T.parameters()):
            raise BadValue(
                f"{type(self.T).__name__} learns, but with detach_weight=True the loss has no gradient for it: pass"
                " detach_weight=False."
            )

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced reweighted base loss; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        log_p = log_softmax(logits)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_weight):
            beta = importance_ratio(logits, log_p, labels, transition)
        if labels.is_floating_point():
            return loss.reduce(loss.values(logits, loss.weighted(beta * labels), *index), labels, mask)
        if isinstance(loss, LikelihoodLoss) and loss.of_likelihood:
            return loss.reduce(beta * loss.of_log_likelihood(pick(log_p, labels)), labels, mask)
        return loss.reduce(beta * loss.values(logits, labels, *index), labels, mask)
