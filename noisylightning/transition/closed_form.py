"""Symmetric noise in closed form."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.kernels.cross_entropy import exact_log_likelihood
from noisylightning.tensors import log_softmax, pick
from noisylightning.transition.structured import StructuredTransition


class SymmetricTransition(StructuredTransition):
    """Symmetric noise: ``1 - rate`` on the diagonal of T and ``rate / (C - 1)`` off it; two numbers for any C.

    Args:
        num_classes: The number of classes C.
        rate: The probability of a wrong label, in [0, 1]. At 1 labels are complementary: they say what a sample is not.

    Raises:
        ValueError: Fewer than two classes, or a rate outside [0, 1].

    Example:
        >>> SymmetricTransition(num_classes=3, rate=0.2).to_dense()
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]])
    """

    def __init__(self, num_classes: int, rate: float) -> None:
        super().__init__(num_classes)
        if not 0 <= rate <= 1:
            raise BadValue(f"the noise rate is a probability in [0, 1], got {rate}.")
        # A number, not a buffer: no dtype rounds it, and which formula serves is known without asking a device.
        self.rate = float(rate)

    @property
    def off(self) -> float:
        """The entries off the diagonal."""
        return self.rate / (self.num_classes - 1)

    @property
    def slope(self) -> float:
        """How much more a class's own label gains from it than any other: ``(p T)_j = off + slope p_j``."""
        return 1 - self.rate - self.off

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``log (p T)_y``, p the softmax: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        log_p = log_softmax(logits)
        return self._rising(pick(log_p, labels)) if self.slope >= 0 else pick(self._falling(log_p), labels)

    def log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``, p the softmax: from scores ``(M, C)`` to ``(M, C)``."""
        log_p = log_softmax(logits)
        return self._rising(log_p) if self.slope >= 0 else self._falling(log_p)

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        columns = torch.full((len(labels), self.num_classes), self.off, device=labels.device)
        return columns.scatter(1, labels.unsqueeze(1), 1 - self.rate)

    def product(self, p: Tensor) -> Tensor:
        """``p T`` for rows of numbers ``(M, C)``: shape ``(M, C)``."""
        return self.slope * p + self.off * p.sum(1, keepdim=True)

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""
        if target.is_floating_point():
            target = target.to(dtype)
            return (target - self.off * target.sum(1, keepdim=True)) / self.slope
        shape = (len(target), self.num_classes)
        rows = torch.full(shape, -self.off / self.slope, dtype=dtype, device=target.device)
        return rows.scatter(1, target.unsqueeze(1), (1 - self.off) / self.slope)

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``; infinite at rate ``(C - 1)/C``, where labels carry nothing."""
        if abs(self.slope) < 1e-12:
            return math.inf
        return (1 - self.off + (self.num_classes - 1) * self.off) / abs(self.slope)

    def check_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Raise unless a saved state is of symmetric noise over as many classes."""
        super().check_saved(saved)
        if int(saved["num_classes"]) != self.num_classes:
            raise BadValue(
                f"the checkpoint's SymmetricTransition is for {int(saved['num_classes'])} classes but this one is for "
                f"{self.num_classes}: build T as when it was saved."
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}num_classes"] = torch.tensor(self.num_classes)
        destination[f"{prefix}rate"] = torch.tensor(self.rate, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if f"{prefix}rate" in state_dict:
            self.rate = float(state_dict[f"{prefix}rate"])
            numbers = (f"{prefix}rate", f"{prefix}num_classes")  # which torch, looking for tensors, did not expect
            unexpected_keys[:] = [key for key in unexpected_keys if key not in numbers]
        elif strict:
            missing_keys.append(f"{prefix}rate")

    def extra_repr(self) -> str:
        """The number of classes and the rate."""
        return f"num_classes={self.num_classes}, rate={self.rate}"

    def _rising(self, log_p: Tensor) -> Tensor:
        """``log(slope p + off)``, for a label that is kept more often than any other class takes it."""
        return torch.logaddexp(log_p + _log(self.slope), torch.full_like(log_p, _log(self.off)))

    def _falling(self, log_p: Tensor) -> Tensor:
        """``log((1 - rate) p + off (1 - p))``, where ``1 - p`` must not be a subtraction from nearly 1."""
        top = log_p.argmax(1, keepdim=True)
        others = exact_log_likelihood(log_p, torch.ones_like(log_p).scatter(1, top, 0)).unsqueeze(1)
        log_complement = torch.log1p(-log_p.exp().scatter(1, top, 0)).scatter(1, top, others)
        return torch.logaddexp(log_p + _log(1 - self.rate), log_complement + _log(self.off))


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf
