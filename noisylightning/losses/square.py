"""The square loss (Brier score) as a base loss."""

from torch import Tensor

from noisylightning.functional.losses import square_loss
from noisylightning.losses.base import Loss
from noisylightning.tensors import log_softmax


class SquareLoss(Loss):
    r"""Square loss, or Brier score: ``l_j = |p - e_j|^2 = 1 - 2 p_j + sum_k p_k^2``.

    Brier (1950), Monthly Weather Review 78, equation 2; one of the losses of Patrini et al. (2017, CVPR).
    Proper composite with respect to softmax, so forward's theorem holds. Not symmetric. Bounded by 2.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> SquareLoss().vector(torch.zeros(1, 4))
        tensor([[0.7500, 0.7500, 0.7500, 0.7500]])
    """

    proper = True

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return square_loss(log_softmax(logits))
