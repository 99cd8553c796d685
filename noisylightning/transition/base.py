"""What every structured T does."""

import torch
from torch import Tensor, nn

from noisylightning.errors import BadValue
from noisylightning.kernels.cross_entropy import repaired_log
from noisylightning.transition.check import check_condition


class Transition(nn.Module):
    """A row-stochastic T, ``T[i, j] = p(noisy = j | clean = i)``, that is never written out.

    The corrections and the functions in :mod:`noisylightning.functional` take one wherever they take a dense tensor.
    A subclass says how probabilities go through T, label by label (:meth:`log_entries`) and all at once
    (:meth:`product`), and how they come back (:meth:`inverse_rows`).

    Args:
        num_classes: The number of classes C.

    Raises:
        ValueError: Fewer than two classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise BadValue(f"label noise needs at least 2 classes, got {num_classes}.")
        self.num_classes = num_classes

    def log_likelihood(self, log_p: Tensor, target: Tensor) -> Tensor:
        """``log (p T)_y``: from log-probabilities ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        return self.log_entries(log_p, torch.arange(len(target), device=target.device), target)

    def log_entries(self, log_p: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """``log (p T)_y`` for the samples at ``sample`` and their ``label``, both ``(K,)``: shape ``(K,)``."""
        raise NotImplementedError

    def log_posterior(self, log_p: Tensor) -> Tensor:
        """``log p T``: from log-probabilities ``(M, C)`` to ``(M, C)``."""
        return repaired_log(self.product(log_p.exp()), lambda i, j: self.log_entries(log_p, i, j), self.terms)

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

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``: the most by which backward correction can amplify a loss."""
        raise NotImplementedError

    def factorize(self, max_condition: float) -> None:
        """Prepare :meth:`inverse_rows`.

        Args:
            max_condition: Refuse a T whose condition number is larger.

        Raises:
            ValueError: T is singular, or its condition number past the bound.
        """
        check_condition(self.condition_number(), max_condition)

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``."""
        entries = next((buffer for buffer in self.buffers() if buffer.is_floating_point()), torch.empty(0))
        return self.product(torch.eye(self.num_classes, dtype=entries.dtype, device=entries.device))

    def extra_repr(self) -> str:
        """The number of classes."""
        return f"num_classes={self.num_classes}"
