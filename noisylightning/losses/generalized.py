"""Generalized cross-entropy: between cross-entropy and the mean absolute error."""

from typing import Any

from torch import Tensor

from noisylightning.functional.losses import (
    check_interval,
    generalized_cross_entropy,
    truncated_generalized_cross_entropy,
)
from noisylightning.losses.base import LikelihoodLoss


class GeneralizedCrossEntropy(LikelihoodLoss):
    r"""Generalized cross-entropy: ``l_j = (1 - p_j^q) / q``.

    Zhang and Sabuncu (2018, NeurIPS), Section 3.2. Not proper with respect to softmax: for class probabilities eta the
    minimiser is proportional to ``eta^(1/(1 - q))``, right about the largest class, too confident about it. Symmetric
    only at ``q = 1``, where it is half the mean absolute error; below, the sum over labels lies between
    ``(C - C^(1 - q))/q`` and ``(C - 1)/q``.

    Args:
        q: From cross-entropy, the limit 0, to half the mean absolute error, 1; the paper uses 0.7.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``q`` is outside (0, 1].

    Example:
        >>> import torch
        >>> GeneralizedCrossEntropy(q=0.5)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.)
    """

    def __init__(self, q: float = 0.7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("q", q, "(0, 1]", "the way from cross-entropy (0) to the absolute error (1)")
        self.q = q
        self.symmetric = q == 1

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``(1 - p^q) / q``, elementwise."""
        return generalized_cross_entropy(log_p, self.q)


class TruncatedGeneralizedCrossEntropy(LikelihoodLoss):
    r"""Truncated generalized cross-entropy: ``l_j = (1 - max(p_j, k)^q) / q``.

    Zhang and Sabuncu (2018, NeurIPS), Section 3.3: a sample whose label the network finds less probable than k has a
    constant loss and teaches nothing, so begin with another loss (the paper begins with the untruncated one). Neither
    proper nor symmetric.

    Args:
        q: As in :class:`GeneralizedCrossEntropy`.
        k: The probability below which a label is given up; the paper uses 0.5.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``q`` is outside (0, 1] or ``k`` outside (0, 1).

    Example:
        >>> import torch
        >>> TruncatedGeneralizedCrossEntropy(q=1.0).vector(torch.tensor([[0.75, 0.25]]).log())
        tensor([[0.2500, 0.5000]])
    """

    def __init__(self, q: float = 0.7, k: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("q", q, "(0, 1]", "the way from cross-entropy (0) to the absolute error (1)")
        check_interval("k", k, "(0, 1)", "the probability below which a label has no gradient")
        self.q = q
        self.k = k

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``(1 - max(p, k)^q) / q``, elementwise."""
        return truncated_generalized_cross_entropy(log_p, self.q, self.k)
