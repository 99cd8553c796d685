"""T that keeps labels or draws them from a few patterns."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue, NotReady
from noisylightning.kernels.cross_entropy import exact_log_likelihood, log_matmul, repaired_log
from noisylightning.tensors import log_softmax
from noisylightning.transition.structured import StructuredTransition


class LowRankTransition(StructuredTransition):
    """Diagonal plus low rank, ``T = diag(d) + U V``: a label is kept, or drawn from one of R patterns of confusion.

    The patterns are the rows of ``V``; ``U[i, r]`` is how often class ``i`` falls for pattern ``r``. Symmetric noise
    has one pattern, the uniform; noise towards frequent classes has one, their frequencies. Inverted by Woodbury's
    identity.

    Args:
        diagonal: ``d``, shape ``(C,)``, not negative; positive for backward correction.
        left: ``U``, shape ``(C, R)``, not negative.
        right: ``V``, shape ``(R, C)``, not negative.

    Raises:
        ValueError: Shapes that do not go together, a negative or not finite entry, or rows that do not sum to one.

    Example:
        >>> kept = torch.tensor([0.8, 0.7, 0.6])
        >>> frequency = torch.tensor([[0.5, 0.3, 0.2]])
        >>> LowRankTransition(kept, 1 - kept.unsqueeze(1), frequency).to_dense()
        tensor([[0.9000, 0.0600, 0.0400],
                [0.1500, 0.7900, 0.0600],
                [0.2000, 0.1200, 0.6800]])
    """

    diagonal: Tensor
    left: Tensor
    right: Tensor
    scaled: Tensor | None
    returned: Tensor | None

    def __init__(self, diagonal: Tensor, left: Tensor, right: Tensor) -> None:
        classes, rank = left.shape if left.ndim == 2 else (0, 0)
        if diagonal.shape != (classes,) or right.shape != (rank, classes):
            raise BadValue(
                f"diagonal (C,), left (C, R) and right (R, C) have shapes {tuple(diagonal.shape)}, {tuple(left.shape)} "
                f"and {tuple(right.shape)}, which do not go together."
            )
        super().__init__(classes)
        for name, part in (("diagonal", diagonal), ("left", left), ("right", right)):
            if not bool((part.isfinite() & (part >= 0)).all()):
                raise BadValue(f"{name} holds an entry that is negative or not finite: T has probabilities.")
        sums = diagonal.double() + left.double() @ right.double().sum(1)
        row = int((sums - 1).abs().argmax())
        if abs(float(sums[row]) - 1) > 1e-4:
            raise BadValue(f"row {row} of diag(d) + U V sums to {float(sums[row]):.6g}, not to one.")
        self.register_buffer("diagonal", diagonal)
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.register_buffer("scaled", None, persistent=False)
        self.register_buffer("returned", None, persistent=False)

    def log_entries(self, log_p: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """``log (p T)_y`` for the samples at ``sample`` and their ``label``, both ``(K,)``: shape ``(K,)``."""
        return self._log_entries(log_p, log_matmul(log_p, self.left), sample, label)

    def log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``, p the softmax: from scores ``(M, C)`` to ``(M, C)``."""
        log_p = log_softmax(logits)
        log_pattern = log_matmul(log_p, self.left)
        return repaired_log(
            self.product(log_p.exp()), lambda i, j: self._log_entries(log_p, log_pattern, i, j), self.terms
        )

    @property
    def terms(self) -> int:
        """The number of patterns, and the label itself."""
        return self.left.shape[1] + 1

    def product(self, p: Tensor) -> Tensor:
        """``p T`` for rows of numbers ``(M, C)``: shape ``(M, C)``."""
        with torch.autocast(p.device.type, enabled=False):
            return p * self.diagonal.to(p.dtype) + (p @ self.left.to(p.dtype)) @ self.right.to(p.dtype)

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""
        if self.scaled is None or self.returned is None:
            raise NotReady("T has not been inverted yet: call factorize(max_condition) first.")
        with torch.autocast(target.device.type, enabled=False):
            if target.is_floating_point():
                target = target.to(dtype)
                return target / self.diagonal.to(dtype) - (target @ self.scaled.to(dtype)) @ self.returned.to(dtype)
            kept = self.diagonal[target].to(dtype).reciprocal().unsqueeze(1)
            drawn = self.scaled[target].to(dtype) @ self.returned.to(dtype)
            return -drawn.scatter_add(1, target.unsqueeze(1), -kept)

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        with torch.autocast(labels.device.type, enabled=False):
            drawn = self.right.t()[labels] @ self.left.t()
        return drawn.scatter_add(1, labels.unsqueeze(1), self.diagonal[labels].unsqueeze(1))

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``, found piece by piece.

        Raises:
            ValueError: The diagonal has a zero.
        """
        self._prepare()
        pieces = torch.arange(self.num_classes, device=self.diagonal.device).split(max(1, 2**24 // self.num_classes))
        return max(float(self.inverse_rows(piece, self.diagonal.dtype).abs().sum(1).max()) for piece in pieces)

    def _prepare(self) -> None:
        """Woodbury's identity, ``T^-1 = D^-1 - (D^-1 U) [(I + V D^-1 U)^-1 V D^-1]``."""
        if not self.diagonal.min() > 0:
            raise BadValue(f"diagonal is zero at class {int(self.diagonal.argmin())}: backward needs it positive.")
        scaled = self.left.double() / self.diagonal.double().unsqueeze(1)
        capacitance = self.right.double() @ scaled
        capacitance.diagonal().add_(1)
        returned = torch.linalg.solve(capacitance, self.right.double()) / self.diagonal.double()
        self.scaled, self.returned = scaled.to(self.left.dtype), returned.to(self.left.dtype)

    def _log_entries(self, log_p: Tensor, log_pattern: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """Both ways to a label, kept or drawn, as the terms of one sum."""
        kept = log_p[sample, label].unsqueeze(1)
        weights = torch.cat([self.diagonal[label].unsqueeze(1), self.right.t()[label]], 1)
        return exact_log_likelihood(torch.cat([kept, log_pattern[sample]], 1), weights)
