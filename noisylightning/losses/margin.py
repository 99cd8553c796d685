"""Losses of the margin of binary classification, carried to C outputs with targets 0 and 1."""

from typing import ClassVar

from torch import Tensor

from noisylightning.functional.losses import ramp_loss, savage_loss, sigmoid_loss, unhinged_loss
from noisylightning.losses.base import Loss
from noisylightning.tensors import log_softmax


class UnhingedLoss(Loss):
    r"""Unhinged loss on bounded scores: ``l_j = 1 - z_j / C``.

    Van Rooyen, Menon and Williamson (2015, NeurIPS): the hinge loss without its hinge, ``1 - y z``, with targets -1 and
    1 the only convex margin loss that is robust to symmetric noise. Here, as in the comparison of Patrini et al. (2017,
    CVPR), it is the mean over the C outputs with targets 0 and 1.

    Not proper: linear in z, it has no minimum, so the scores have to be bounded: see
    :class:`~noisylightning.models.BatchNormHead`. The sum over labels is ``C - mean(z)``, not a constant, so this is
    not symmetric; behind a BatchNorm head each output has mean zero over the batch, and the *batch's* sum over labels
    is constant.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> UnhingedLoss().vector(torch.tensor([[1.0, -1.0]]))
        tensor([[0.5000, 1.5000]])
    """

    of_scores: ClassVar[bool] = True

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return unhinged_loss(logits)


class SigmoidLoss(Loss):
    r"""Sigmoid loss on bounded scores: ``l_j = [s(-z_j) + (C - 1)/2] / C``, ``s(v) = 1/(1 + e^-v)``.

    Ghosh, Manwani and Sastry (2015, Neurocomputing 160), where the margin loss ``s(-y z)`` with y of -1 and 1 is
    symmetric, ``s(-z) + s(z) = 1``. Here, as in the comparison of Patrini et al. (2017, CVPR), it is the mean over the
    C outputs with targets 0 and 1, which is not: the sum over labels depends on z. Not proper. Its gradient vanishes
    for large scores: see :class:`~noisylightning.models.BatchNormHead`.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> SigmoidLoss().vector(torch.tensor([[0.0, 100.0]]))
        tensor([[0.5000, 0.2500]])
    """

    of_scores: ClassVar[bool] = True

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return sigmoid_loss(logits)


class RampLoss(Loss):
    r"""Ramp loss on bounded scores: ``l_j = [min(1, max(0, 1 - z_j)) + C - 1] / C``.

    Brooks (2011, Operations Research 59) for support vector machines; robust as a margin loss with targets -1 and 1 by
    Ghosh, Manwani and Sastry (2015, Neurocomputing 160). Here, as in the comparison of Patrini et al. (2017, CVPR), it
    is the mean over the C outputs with targets 0 and 1: neither proper nor symmetric. It has no gradient outside
    ``0 < z_j < 1``: see :class:`~noisylightning.models.BatchNormHead`.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> RampLoss().vector(torch.tensor([[-1.0, 0.5]]))
        tensor([[1.0000, 0.7500]])
    """

    of_scores: ClassVar[bool] = True

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return ramp_loss(logits)


class SavageLoss(Loss):
    r"""Savage loss on probabilities: ``l_j = [(1 + e^(2 p_j))^-2 + (C - 1)/4] / C``.

    Masnadi-Shirazi and Vasconcelos (2008, NeurIPS), whose margin loss ``(1 + e^(2 v))^-2`` is proper composite with
    its own link, ``p = e^(2 v) / (1 + e^(2 v))``. Here, as in the comparison of Patrini et al. (2017, CVPR), it is the
    mean over the C softmax outputs with targets 0 and 1; of those it is not proper, and not symmetric either.

    Args:
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Example:
        >>> import torch
        >>> SavageLoss().vector(torch.tensor([[-100.0, 100.0]]))
        tensor([[0.2500, 0.1321]])
    """

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return savage_loss(log_softmax(logits))
