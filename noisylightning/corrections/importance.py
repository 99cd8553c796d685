"""Importance reweighting: the base loss, weighted by the ratio of the posteriors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from noisylightning.corrections.base import Correction
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
        detach_weight: Whether beta is a constant for the network's gradient, as in T-Revision's first stage; its last
            stage differentiates it, from a trained network and at a tiny rate: ``beta l_y(p)`` vanishes with ``p_y``,
            and a network that is free to leaves every label to a class that has none. A T that learns gets its
            gradient through beta either way.

    Example:
        >>> import torch
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

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced reweighted base loss; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        log_p = log_softmax(logits)
        seen = (logits.detach(), log_p.detach()) if self.detach_weight else (logits, log_p)
        beta = importance_ratio(*seen, labels, transition)
        if labels.is_floating_point():
            return loss.reduce(loss.values(logits, loss.weighted(beta * labels), *index), labels, mask)
        if isinstance(loss, LikelihoodLoss) and loss.of_likelihood:
            return loss.reduce(beta * loss.of_log_likelihood(pick(log_p, labels)), labels, mask)
        return loss.reduce(beta * loss.values(logits, labels, *index), labels, mask)
