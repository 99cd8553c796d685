"""The bi-tempered logistic loss as a base loss."""

from typing import Any

from torch import Tensor

from noisylightning.functional.losses import check_interval
from noisylightning.functional.tempered import bi_tempered_loss
from noisylightning.losses.base import Loss


class BiTemperedLoss(Loss):
    r"""Bi-tempered logistic loss: ``l_j = -log_t1 p_j - (1 - sum_k p_k^(2 - t1)) / (2 - t1)``, p the tempered softmax.

    Amid et al. (2019, NeurIPS): a logarithm ``log_t1 p = (p^(1 - t1) - 1)/(1 - t1)`` that bounds the loss of
    an outlier far from the boundary, and a softmax with a heavy tail for those near it,
    :func:`~noisylightning.functional.tempered.log_tempered_softmax`. At ``t1 = t2 = 1`` it is cross-entropy, at
    ``t1 = 0, t2 = 1`` half the square loss.

    It is a Bregman divergence from the label to p, hence proper composite for any t1, but with the *tempered* softmax:
    with respect to softmax, only for ``t2 = 1``. Not symmetric.

    Args:
        t1: Temperature of the logarithm; below 1 the loss is bounded.
        t2: Temperature of the softmax; above 1 its tail is heavy. The defaults are what the paper chose for CIFAR-100.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``t1`` is outside [0, 1] or ``t2`` below 1 or not finite.

    Example:
        >>> import torch
        >>> BiTemperedLoss(t1=0.5, t2=2.0).vector(torch.tensor([[4.0, 0.0]]))
        tensor([[0.0752, 1.0001]])
    """

    def __init__(self, t1: float = 0.8, t2: float = 1.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("t1", t1, "[0, 1]", "the temperature of the logarithm")
        check_interval("t2", t2, "[1, inf)", "the temperature of the softmax")
        self.t1 = t1
        self.t2 = t2
        self.proper = t2 == 1

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return bi_tempered_loss(logits, self.t1, self.t2)
