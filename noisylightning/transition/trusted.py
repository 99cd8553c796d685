"""T of a batch in which some labels are known to be right."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.tensors import log_softmax, pick
from noisylightning.transition.base import Transition


class IdentityForTrusted(Transition):
    """The identity for the trusted samples of a batch, whose labels are right, and a T for the others.

    Hendrycks et al. (2018, NeurIPS), the loss of gold loss correction: with it a correction is the base loss of trusted
    samples and the corrected loss of the others, however they are weighted and reduced. T sees the others alone, so
    that neither a value nor a gradient of a trusted sample goes through it. It is made anew for each batch.

    Args:
        transition: The T of the others; one that depends on the sample is that of the others in their order.
        trusted: Which samples of the batch are trusted, bool of shape ``(N,)``.

    Raises:
        TypeError: If ``trusted`` is not bool.
        ValueError: If it is not of shape ``(N,)``; when called, if there is another number of samples.

    Example:
        >>> from noisylightning.functional import noisy_log_likelihood
        >>> from noisylightning.transition import DenseTransition
        >>> of_batch = IdentityForTrusted(DenseTransition(torch.full((2, 2), 0.5)), torch.tensor([True, False]))
        >>> noisy_log_likelihood(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]), of_batch).exp()
        tensor([0.8808, 0.5000])
    """

    def __init__(self, transition: Transition, trusted: Tensor) -> None:
        super().__init__(transition.num_classes)
        check_trusted(trusted)
        self.others = transition
        self.trusted = trusted
        order = trusted.byte().argsort(stable=True)
        # The one look at values, for which an accelerator waits: how many samples T sees.
        self._order, self._num_others = order, len(trusted) - int(trusted.sum())
        self.is_identity = not self._num_others

    @property
    def is_class_conditional(self) -> bool:
        """Never: it depends on which samples are trusted."""
        return False

    @property
    def index_of_others(self) -> Tensor:
        """Places in the batch of the samples that are not trusted, in order, int64."""
        return self._order[: self._num_others]

    def check_logits(self, logits: Tensor) -> None:
        """Raise unless T goes with the scores ``(N, C, d1, ...)``, and there is a flag for each of the N samples."""
        self.others.check_logits(logits)
        check_trusted(self.trusted, len(logits))

    def penalty(self, logits: Tensor) -> Tensor | None:
        """What T adds to the training loss, of the samples that it sees.

        Processes that train together wait for a gradient of every parameter: of a batch whose samples are all trusted
        a T that learns gets zeros.
        """
        if self._num_others:
            return self.others.penalty(logits.index_select(0, self.index_of_others))
        learnt = [parameter.sum() for parameter in self.others.parameters() if parameter.requires_grad]
        return 0 * torch.stack(learnt).sum() if learnt else None

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``log (p T)_y``, and ``log p_y`` of the trusted: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        return self._joined(self.others.log_likelihood, _own_log_likelihood, logits, labels)

    def mean_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`log_likelihood`: a scalar."""
        return self._mean(self.others.mean_cross_entropy, logits, labels)

    def log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``, and ``log p`` of the trusted: from scores ``(M, C)`` to ``(M, C)``."""
        return self._joined(self.others.log_posterior, log_softmax, logits)

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        return self._joined(self.others.label_columns, lambda own: F.one_hot(own, self.num_classes), labels)

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""

        def own(target: Tensor) -> Tensor:
            return (target if target.is_floating_point() else F.one_hot(target, self.num_classes)).to(dtype)

        return self._joined(lambda target: self.others.inverse_rows(target, dtype), own, target)

    def unbiased_log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``sum_k (T^-1)_yk log p_k``, and ``log p_y`` of the trusted, shape ``(M,)``."""
        return self._joined(self.others.unbiased_log_likelihood, _own_log_likelihood, logits, labels)

    def mean_unbiased_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`unbiased_log_likelihood`: a scalar."""
        return self._mean(self.others.mean_unbiased_cross_entropy, logits, labels)

    # Rows are samples, or, where a sample has several labels, theirs one after the other.

    def _parted(self, *rows: Tensor) -> tuple[Tensor, int, list[tuple[Tensor, ...]]]:
        """Return the order of rows, others first, the number of others, and the rows of others and of trusted."""
        each = len(rows[0]) // max(1, len(self.trusted))
        order, num_others = self._order, each * self._num_others
        if each != 1:
            order = (each * order[:, None] + torch.arange(each, device=order.device)).flatten()
        sizes = [num_others, len(order) - num_others]
        return order, num_others, [of_all.index_select(0, order).split(sizes) for of_all in rows]

    def _joined(self, of_others: Callable[..., Tensor], own: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        order, _, parts = self._parted(*rows)
        both = [(of_others, [part[0] for part in parts]), (own, [part[1] for part in parts])]
        found = [compute(*given) for compute, given in both if len(given[0])]
        return torch.cat(found).index_select(0, order.argsort()) if found else own(*rows)

    def _mean(self, of_others: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        order, num_others, ((others, trusted), (noisy, right)) = self._parted(logits, labels)
        if not num_others:
            return F.nll_loss(log_softmax(logits), labels)
        if num_others == len(order):
            return of_others(logits, labels)
        share = num_others / len(order)
        return share * of_others(others, noisy) + (1 - share) * F.nll_loss(log_softmax(trusted), right)


def check_trusted(trusted: Tensor, num: int | None = None) -> None:
    """Raise unless it says of each of N samples whether its label is known to be right.

    Args:
        trusted: What is to be bool of shape ``(N,)``.
        num: The number of samples N, where it is known.

    Raises:
        TypeError: If it is not bool.
        ValueError: If it is of another shape.
    """
    if not isinstance(trusted, Tensor) or trusted.dtype != torch.bool:
        found = trusted.dtype if isinstance(trusted, Tensor) else type(trusted).__name__
        raise BadType(
            f"trusted must be bool, whether each label is known to be right, got {found}: batches are (inputs, labels),"
            " (inputs, labels, index) or (inputs, labels, index, trusted)."
        )
    if trusted.ndim != 1 or num not in (None, len(trusted)):
        raise BadValue(
            f"trusted must be of shape {'(N,)' if num is None else (num,)}, one flag a sample, got"
            f" {tuple(trusted.shape)}."
        )


def _own_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    return pick(log_softmax(logits), labels)
