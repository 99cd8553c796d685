"""Losses robust by themselves: their sum over labels is constant, or they are built with one whose sum is."""

from typing import Any

from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.losses import (
    check_interval,
    mean_absolute_error,
    normalized_cross_entropy,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)
from noisylightning.losses.base import LikelihoodLoss, Loss
from noisylightning.tensors import log_softmax


class MeanAbsoluteError(LikelihoodLoss):
    r"""Mean absolute error of the probabilities: ``l_j = |p - e_j|_1 = 2 (1 - p_j)``.

    Ghosh, Kumar and Sastry (2017, AAAI). Symmetric: the sum over labels is ``2 (C - 1)``, so that the minimiser of the
    risk is the same under symmetric noise below ``(C - 1)/C`` (their Theorem 1). Not proper: linear in p, it is
    minimised by the most probable class's corner. Slow to train with, because hard samples count little.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> MeanAbsoluteError().vector(torch.zeros(1, 4)).sum()
        tensor(6.)
    """

    symmetric = True

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``2 (1 - p)``, elementwise."""
        return mean_absolute_error(log_p)


class ReverseCrossEntropy(LikelihoodLoss):
    r"""Reverse cross-entropy: ``l_j = -sum_k p_k log e_jk = -A (1 - p_j)`` with ``A`` standing for ``log 0``.

    Wang et al. (2019, ICCV), Section 4. Symmetric, the sum over labels is ``-A (C - 1)``: it is the mean absolute error
    times ``-A/2``. Not proper.

    Args:
        log_zero: ``A``, negative.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``log_zero`` is not negative and finite.

    Example:
        >>> import torch
        >>> ReverseCrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(3.)
    """

    symmetric = True

    def __init__(self, log_zero: float = -4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("log_zero", log_zero, "(-inf, 0)", "the number that stands for log 0")
        self.log_zero = log_zero

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``-A (1 - p)``, elementwise."""
        return reverse_cross_entropy(log_p, self.log_zero)


class SymmetricCrossEntropy(LikelihoodLoss):
    r"""Symmetric cross-entropy: ``l_j = -alpha log p_j - beta A (1 - p_j)``, cross-entropy and its reverse.

    Wang et al. (2019, ICCV), Section 4. In spite of its name it is symmetric in the sense of :attr:`symmetric` only for
    ``alpha = 0``, where it is reverse cross-entropy; proper only for ``beta = 0``, where it is cross-entropy.

    Args:
        alpha: Weight of cross-entropy; the paper uses 0.1 on CIFAR-10 and 6 on CIFAR-100.
        beta: Weight of reverse cross-entropy; the paper uses 1 on CIFAR-10 and 0.1 on CIFAR-100.
        log_zero: ``A``, which stands for ``log 0``; negative.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If a weight is negative, both are zero, or ``log_zero`` is not negative and finite.

    Example:
        >>> import torch
        >>> SymmetricCrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(3.1386)
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("alpha", alpha, "[0, inf)", "the weight of cross-entropy")
        check_interval("beta", beta, "[0, inf)", "the weight of reverse cross-entropy")
        check_interval("log_zero", log_zero, "(-inf, 0)", "the number that stands for log 0")
        if alpha == beta == 0:
            raise BadValue("alpha and beta are both 0, which leaves no loss: make at least one of them positive.")
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero
        self.proper = beta == 0
        self.symmetric = alpha == 0

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``-alpha log p - beta A (1 - p)``, elementwise."""
        return symmetric_cross_entropy(log_p, self.alpha, self.beta, self.log_zero)


class NormalizedCrossEntropy(Loss):
    r"""Normalized cross-entropy: ``l_j = log p_j / sum_k log p_k``.

    Ma et al. (2020, ICML), Section 3. Symmetric: the entries sum to one. Not proper: its gradient also rises by making
    the other classes less probable than they are. Trains slowly alone, well with a passive loss: see
    :class:`~noisylightning.losses.ActivePassive`.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> NormalizedCrossEntropy().vector(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    symmetric = True

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return normalized_cross_entropy(log_softmax(logits))
