"""Transition matrices with structure: memory and time follow the structure, never ``C`` squared."""

from torch import Tensor, nn


class Transition(nn.Module):
    """A row-stochastic T, ``T[i, j] = p(noisy = j | clean = i)``, that is never written out.

    The corrections and the functions in :mod:`noisylightning.functional` take one wherever they take a dense tensor.
    A subclass says how a row of probabilities goes through T, one label at a time or for all labels, and back.

    Args:
        num_classes: The number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"label noise needs at least 2 classes, got {num_classes}.")
        self.num_classes = num_classes

    def log_likelihood(self, log_p: Tensor, target: Tensor) -> Tensor:
        """``log (p T)_y``: from log-probabilities ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        raise NotImplementedError

    def log_posterior(self, log_p: Tensor) -> Tensor:
        """``log p T``: from log-probabilities ``(M, C)`` to ``(M, C)``."""
        raise NotImplementedError

    def inverse_rows(self, target: Tensor) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: shape ``(M, C)``."""
        raise NotImplementedError

    def factorize(self, max_condition: float) -> None:
        """Prepare :meth:`inverse_rows`.

        Args:
            max_condition: Refuse a T whose condition number is larger.

        Raises:
            ValueError: T is singular, or its condition number past the bound.
        """
        raise NotImplementedError

    def condition_number(self) -> float:
        """``|T^-1|`` in the infinity norm: the most by which backward correction can amplify a loss."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``."""
        raise NotImplementedError
