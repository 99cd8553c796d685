"""Label smoothing, positive and negative, as a base loss."""

from typing import Any

from torch import Tensor

from noisylightning.functional.losses import check_interval, label_smoothing
from noisylightning.losses.base import Loss
from noisylightning.tensors import log_softmax


class LabelSmoothing(Loss):
    r"""Label smoothing: ``l_j = -(1 - r) log p_j - r/C sum_k log p_k``; negative label smoothing for ``r < 0``.

    Szegedy et al. (2016, CVPR), Section 7; the generalization to negative rates is that of Wei et al. (2022, ICML), who
    find it better the more labels are wrong. Cross-entropy, hence proper, for ``r = 0``; otherwise the minimiser is
    ``(1 - r) eta + r/C`` where that is a distribution, and for ``r < 0`` there may be none: the loss is unbounded
    below, like backward correction, which it equals for symmetric noise of rate rho (to another class) at
    ``r = -rho C / (C - 1 - rho C)``. Not symmetric. With class weights, the label's factor multiplies all of l.

    Args:
        rate: ``r``, the share of the uniform distribution in the target, at most 1.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``rate`` is above 1 or not finite.

    Example:
        >>> import torch
        >>> LabelSmoothing(0.1)(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor(0.2181)
        >>> LabelSmoothing(-1.0)(torch.tensor([[4.0, 0.0]]), torch.tensor([0]))
        tensor(-1.9818)
    """

    def __init__(self, rate: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("rate", rate, "(-inf, 1]", "the share of the uniform distribution in the target")
        self.rate = rate
        self.proper = rate == 0

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return label_smoothing(log_softmax(logits), self.rate)
