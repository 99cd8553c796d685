"""Cross-entropy as a base loss."""

from typing import ClassVar

from torch import Tensor

from noisylightning.losses.base import LikelihoodLoss


class CrossEntropy(LikelihoodLoss):
    r"""Cross-entropy, ``l_j = -log p_j``.

    Proper composite with respect to softmax (Reid and Williamson 2010), so forward's theorem holds; not symmetric.
    Equal to :class:`torch.nn.CrossEntropyLoss` in value and gradient.

    Args:
        weight: One factor per class, shape ``(C,)``.
        ignore_index: Targets with this index count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Example:
        >>> import torch
        >>> CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    proper = True
    is_cross_entropy: ClassVar[bool] = True

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """``-log p``, elementwise."""
        return -log_p
