"""Focal loss as a base loss."""

from typing import Any

from torch import Tensor

from noisylightning.functional.losses import check_interval, focal_loss
from noisylightning.losses.base import LikelihoodLoss


class FocalLoss(LikelihoodLoss):
    r"""Focal loss: ``l_j = -(1 - p_j)^gamma log p_j``.

    Lin et al. (2017, ICCV), equation 4; the class factor of their equation 5 is ``weight``. Cross-entropy, hence
    proper, for ``gamma = 0``; otherwise the minimiser is not the truth, though its largest class is (Charoenphakdee et
    al. 2021, CVPR). Not symmetric, and not robust: it favours the samples that the network finds improbable, the wrong
    labels among them.

    Args:
        gamma: How much less a probable label counts; the paper uses 2.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If ``gamma`` is negative or not finite.

    Example:
        >>> import torch
        >>> FocalLoss()(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor(0.1733)
    """

    def __init__(self, gamma: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("gamma", gamma, "[0, inf)", "the exponent of 1 - p")
        self.gamma = gamma
        self.proper = gamma == 0

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``-(1 - p)^gamma log p``, elementwise."""
        return focal_loss(log_p, self.gamma)
