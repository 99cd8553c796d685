"""Forward correction: the base loss of the noisy posterior."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from noisylightning.corrections.base import Correction
from noisylightning.errors import BadValue
from noisylightning.functional.forward import label_log_likelihood, masked_forward_cross_entropy, noisy_log_posterior
from noisylightning.losses import LikelihoodLoss, Loss
from noisylightning.transition import Transition


class ForwardCorrection(Correction):
    """Forward correction: the base loss of the noisy posterior, ``l_y(p T)``.

    Patrini et al. (2017), Theorem 2: for a proper composite loss, minimised under the noisy distribution by the clean
    posterior. For a loss of the label's likelihood alone, such as cross-entropy, it reads one column of T per sample;
    for others, and soft targets, it needs all of ``p T``. A loss of scores z gets the scores ``log(e^z T)``.

    Args:
        transition: T, see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy. One that is not proper composite warns.
        floor: ``(p T)_y`` below it counts as it, without gradient. Where column ``y`` of T is zero, so that T calls
            the label impossible, the default 0 gives cross-entropy an infinite loss.

    Example:
        >>> import torch
        >>> correction = ForwardCorrection(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.5990)
    """

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        floor: float = 0.0,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        if not 0 <= floor < 1:
            raise BadValue(f"floor must be a probability in [0, 1), got {floor}.")
        self.floor = floor
        if not self.loss.proper:
            warnings.warn(
                f"{type(self.loss).__name__} is not proper composite, so Theorem 2 of Patrini et al. (2017) does not "
                "hold for it: forward correction need not lead to the clean posterior.",
                stacklevel=2,
            )

    def is_base_loss(self, transition: Transition) -> bool:
        """Whether T is the identity, and no floor lies under the likelihood."""
        return transition.is_identity and self.floor == 0

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced base loss of ``p T``; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        soft = labels.is_floating_point()
        if loss.is_cross_entropy and not soft:
            weight, reduction = loss.weight, loss.reduction
            return masked_forward_cross_entropy(logits, labels, mask, transition, weight, reduction, self.floor)
        if isinstance(loss, LikelihoodLoss) and loss.of_likelihood and not soft:
            values = loss.of_log_likelihood(label_log_likelihood(logits, labels, transition, self.floor))
        else:
            noisy_logits = noisy_log_posterior(logits, transition, floor=self.floor)
            if loss.of_scores:  # log(e^z T): the scores' level, which the posterior forgets
                noisy_logits = noisy_logits + logits.logsumexp(dim=1, keepdim=True)
            values = loss.values(noisy_logits, loss.weighted(labels), *index)
        return loss.reduce(values, labels, mask)
