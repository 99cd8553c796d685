"""Bootstrap losses: a part of the target is what the network itself predicts."""

from typing import Any

from torch import Tensor

from noisylightning.functional.losses import check_interval, hard_bootstrap, soft_bootstrap
from noisylightning.losses.base import Loss
from noisylightning.tensors import log_softmax


class SoftBootstrap(Loss):
    r"""Soft bootstrap: ``l_j = -sum_k (beta 1[k = j] + (1 - beta) p_k) log p_k``.

    Reed et al. (2015, ICLR workshop), "soft bootstrapping": the label's cross-entropy and the entropy of the
    prediction, with the gradient through both p. Cross-entropy, hence proper, for ``beta = 1``; otherwise the minimiser
    is more confident than the truth. Not symmetric.

    Args:
        beta: The share of the given label in the target; the paper and Patrini et al. (2017) use 0.95.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    Example:
        >>> import torch
        >>> SoftBootstrap()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(self, beta: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("beta", beta, "[0, 1]", "the share of the given label in the target")
        self.beta = beta
        self.proper = beta == 1

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return soft_bootstrap(log_softmax(logits), self.beta)


class HardBootstrap(Loss):
    r"""Hard bootstrap: ``l_j = -beta log p_j - (1 - beta) log p_m`` with ``m`` the predicted class, ``argmax p``.

    Reed et al. (2015, ICLR workshop), "hard bootstrapping". Cross-entropy, hence proper, for ``beta = 1``; otherwise
    the minimiser is more confident than the truth. Not symmetric.

    Args:
        beta: The share of the given label in the target; the paper and Patrini et al. (2017) use 0.8.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``beta`` is outside [0, 1].

    Example:
        >>> import torch
        >>> HardBootstrap().vector(torch.tensor([[0.25, 0.75]]).log())
        tensor([[1.1666, 0.2877]])
    """

    def __init__(self, beta: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("beta", beta, "[0, 1]", "the share of the given label in the target")
        self.beta = beta
        self.proper = beta == 1

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return hard_bootstrap(log_softmax(logits), self.beta)
