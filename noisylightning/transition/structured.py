"""T that is never written out: memory and time follow its structure."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.kernels.cross_entropy import repaired_log
from noisylightning.tensors import expectation, log_softmax
from noisylightning.transition.base import Transition


class StructuredTransition(Transition):
    """A T that is never written out.

    A subclass says how probabilities go through T, label by label (:meth:`log_entries`) and all at once
    (:meth:`product`), what its :meth:`label_columns` are, and how probabilities come back (:meth:`inverse_rows`).

    Args:
        num_classes: The number of classes C.

    Raises:
        ValueError: Fewer than two classes.
    """

    def log_entries(self, log_p: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """``log (p T)_y`` for the samples at ``sample`` and their ``label``, both ``(K,)``: shape ``(K,)``."""
        raise NotImplementedError

    @property
    def terms(self) -> int:
        """The most terms that :meth:`log_entries` adds up for an entry."""
        return self.num_classes

    def product(self, p: Tensor) -> Tensor:
        """``p T`` for rows of numbers ``(M, C)``: shape ``(M, C)``."""
        raise NotImplementedError

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""
        raise NotImplementedError

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        raise NotImplementedError

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``: the most by which backward correction can amplify a loss."""
        raise NotImplementedError

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``log (p T)_y``, p the softmax: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        return self.log_entries(log_softmax(logits), torch.arange(len(labels), device=labels.device), labels)

    def mean_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`log_likelihood`: a scalar."""
        return -self.log_likelihood(logits, labels).mean()

    def log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``, p the softmax: from scores ``(M, C)`` to ``(M, C)``."""
        log_p = log_softmax(logits)
        return repaired_log(self.product(log_p.exp()), lambda i, j: self.log_entries(log_p, i, j), self.terms)

    def unbiased_log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``sum_k (T^-1)_yk log p_k``: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        log_p = log_softmax(logits)
        return expectation(log_p, self.inverse_rows(labels, log_p.dtype))

    def mean_unbiased_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`unbiased_log_likelihood`: a scalar."""
        return -self.unbiased_log_likelihood(logits, labels).mean()

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``."""
        entries = next((buffer for buffer in self.buffers() if buffer.is_floating_point()), torch.empty(0))
        return self.product(torch.eye(self.num_classes, dtype=entries.dtype, device=entries.device))
