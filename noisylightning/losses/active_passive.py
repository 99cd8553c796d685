"""The sum of an active and a passive loss."""

from typing import Any

from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.losses import check_interval
from noisylightning.losses.base import Loss


class ActivePassiveLoss(Loss):
    r"""Active passive loss: ``l_j = alpha * active_j + beta * passive_j``.

    Ma et al. (2020, ICML), Section 4: an active loss raises the label's probability, a passive one also lowers those of
    the other classes, and two robust losses, one of each kind, train better than either by itself. The paper's two are
    NCE+RCE and NCE+MAE: :class:`~noisylightning.losses.NormalizedCrossEntropy` with
    :class:`~noisylightning.losses.ReverseCrossEntropy` or :class:`~noisylightning.losses.MeanAbsoluteError`.

    Symmetric if both parts are, as in those two; proper if both parts are, as in neither.

    Args:
        active: The active loss, without class weights of its own.
        passive: The passive loss, likewise.
        alpha: Weight of the active loss; the paper uses 1 on CIFAR-10 and 10 on CIFAR-100.
        beta: Weight of the passive loss; the paper uses 1 on CIFAR-10 and 0.1 on CIFAR-100.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`; those of
            the parts are not used.

    Raises:
        ValueError: If ``alpha`` or ``beta`` is not positive and finite, or a part has class weights or needs an index.

    Example:
        >>> import torch
        >>> from noisylightning.losses import NormalizedCrossEntropy, ReverseCrossEntropy
        >>> nce_rce = ActivePassiveLoss(NormalizedCrossEntropy(), ReverseCrossEntropy())
        >>> nce_rce(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(3.2500)
    """

    def __init__(self, active: Loss, passive: Loss, alpha: float = 1.0, beta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_interval("alpha", alpha, "(0, inf)", "the weight of the active loss")
        check_interval("beta", beta, "(0, inf)", "the weight of the passive loss")
        for name, part in (("active", active), ("passive", passive)):
            if part.weight is not None:
                raise BadValue(f"the {name} loss has class weights, which would be lost: give them to the sum.")
            if part.needs_index:
                raise BadValue(f"the {name} loss, {type(part).__name__}, keeps a state per sample: use it by itself.")
        self.active = active
        self.passive = passive
        self.alpha = alpha
        self.beta = beta
        self.proper = active.proper and passive.proper
        self.symmetric = active.symmetric and passive.symmetric

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return self.alpha * self.active.vector(logits) + self.beta * self.passive.vector(logits)
