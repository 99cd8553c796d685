"""T of the sample, put together from the T of its parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue, NotReady
from noisylightning.kernels.cross_entropy import exact_log_likelihood
from noisylightning.transition.base import Transition
from noisylightning.transition.check import validate_transition
from noisylightning.transition.structured import StructuredTransition


class PartDependentTransition(Transition):
    """T of the sample, ``T(x) = sum_r h_r(x) P_r``: as its features are put together from parts, so is its T.

    Xia et al. (NeurIPS 2020), PTD. It is the identity until it gets an estimate:
    :class:`~noisylightning.estimators.PartDependentEstimator` finds the parts and every ``P_r``, and codes the samples
    by the features of the network of stage one. Stage two's network has other features, so the codes are kept, a row
    for each sample of the training data: batches carry the samples' ``index`` (``with_index=True``). A sample that has
    no row gets the mean code; a T-hat without parts is the T of every sample.

    Args:
        num_classes: The number of classes C.

    Raises:
        ValueError: Fewer than two classes.

    Example:
        >>> transition = PartDependentTransition(2)
        >>> parts = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.4], [0.2, 0.8]]])
        >>> transition.take_details({"parts": parts, "codes": torch.tensor([[1.0, 0.0], [0.5, 0.5]])})
        >>> transition.at(None, torch.tensor([1, 0])).label_columns(torch.tensor([0, 0]))
        tensor([[0.8000, 0.1000],
                [1.0000, 0.0000]])
    """

    parts: Tensor  # (R, C, C), none as long as it waits
    codes: Tensor  # (N, R), of the samples by their index

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("parts", torch.empty(0, num_classes, num_classes))
        self.register_buffer("codes", torch.empty(0, 0))
        self.notice_identity()

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether it is the identity because no estimate has come yet."""
        return self.is_identity

    def notice_identity(self) -> None:
        """Bring :attr:`is_identity` up to date: T is the identity as long as it has no parts."""
        self.is_identity = len(self.parts) == 0

    def await_estimate(self) -> None:
        """Be the identity until :meth:`start_from`."""
        self._hold(self.parts[:0], self.codes[:0, :0])

    def start_from(self, estimate: Tensor) -> None:
        """Be this T for every sample.

        Args:
            estimate: Row-stochastic, shape ``(C, C)``.

        Raises:
            TypeError: It is no floating tensor.
            ValueError: It is not row-stochastic, or not of this number of classes.
        """
        validate_transition(estimate, self.num_classes)
        self._hold(estimate[None], estimate.new_empty(0, 1))

    def take_details(self, details: Mapping[str, Tensor]) -> None:
        """Take the parts, where the estimator has found some.

        Args:
            details: ``parts``, row-stochastic, ``(R, C, C)``, and ``codes``, ``(N, R)``, not negative, rows summing to
                one.

        Raises:
            TypeError: A part is no floating tensor.
            ValueError: A part is not row-stochastic, or a code is no distribution over the parts.
        """
        if not details.keys() >= {"parts", "codes"}:
            return
        parts, codes = details["parts"], details["codes"]
        for part in parts:
            validate_transition(part, self.num_classes)
        if codes.ndim != 2 or codes.shape[1] != len(parts):
            raise BadValue(f"codes must be of shape (N, {len(parts)}), one for each part, got {tuple(codes.shape)}.")
        if not bool(((codes >= 0).all(dim=1) & ((codes.sum(dim=1) - 1).abs() < 1e-4)).all()):
            raise BadValue("codes must be distributions over the parts, but a row is negative or does not sum to one.")
        self._hold(parts, codes)

    def _hold(self, parts: Tensor, codes: Tensor) -> None:
        self.parts, self.codes = parts.detach().to(self.parts, copy=True), codes.detach().to(self.codes, copy=True)
        self.notice_identity()

    def _mean_code(self) -> Tensor:
        return (
            self.codes.mean(dim=0) if len(self.codes) else self.codes.new_full((len(self.parts),), 1 / len(self.parts))
        )

    def to_dense(self) -> Tensor:
        """The mean of T over the samples, shape ``(C, C)``."""
        if self.is_identity:
            return torch.eye(self.num_classes).to(self.parts)
        return torch.einsum("r,rij->ij", self._mean_code(), self.parts)

    def at(self, features: Tensor | None, index: Tensor | None) -> Transition:
        """The T of these samples.

        Args:
            features: Not looked at.
            index: Positions of the samples in the data set, shape ``(N,)``.

        Raises:
            RuntimeError: There is no index.
        """
        if index is None:
            raise NotReady(
                "a PartDependentTransition knows the samples by their index, which these batches do not carry: give"
                " the data module with_index=True (--data.with_index true)."
            )
        if self.is_identity:
            return self
        known = (index >= 0) & (index < len(self.codes))
        codes = self._mean_code().expand(len(index), -1)
        if len(self.codes):
            codes = torch.where(known[:, None], self.codes[index.masked_fill(~known, 0)], codes)
        return PartMixture(self.parts, codes)

    def factorize(self, max_condition: float) -> None:
        """Refuse: backward correction would invert a matrix for each sample."""
        raise BadType("a PartDependentTransition is not inverted, sample by sample: use ForwardCorrection.")

    def check_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Make room for as many parts and samples as were saved; raise unless the number of classes is this one."""
        if saved.keys() >= {"parts", "codes"} and saved["parts"].shape[1:] == self.parts.shape[1:]:
            self.parts = self.parts.new_zeros(saved["parts"].shape)
            self.codes = self.codes.new_zeros(saved["codes"].shape)
        super().check_saved(saved)


class PartMixture(StructuredTransition):
    """The T of each sample of a batch, never written out.

    Args:
        parts: Row-stochastic, shape ``(R, C, C)``.
        codes: Of each sample how much of each part it has, shape ``(N, R)``.
    """

    parts: Tensor
    codes: Tensor

    def __init__(self, parts: Tensor, codes: Tensor) -> None:
        super().__init__(parts.shape[1])
        self.register_buffer("parts", parts)
        self.register_buffer("codes", codes)

    def _codes_of(self, rows: int) -> Tensor:
        """The codes of so many rows: a sample has one, or one for each of its places (pixels)."""
        return self.codes.repeat_interleave(rows // len(self.codes), dim=0) if len(self.codes) else self.codes

    def _columns(self, codes: Tensor, labels: Tensor) -> Tensor:
        return torch.einsum("mr,mri->mi", codes, self.parts.permute(2, 0, 1)[labels])

    def log_entries(self, log_p: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """``log (p T)_y`` for the samples at ``sample`` and their ``label``, both ``(K,)``: shape ``(K,)``."""
        columns = self._columns(self._codes_of(len(log_p))[sample], label)
        return exact_log_likelihood(log_p[sample], columns)

    def product(self, p: Tensor) -> Tensor:
        """``p T`` for rows of numbers ``(M, C)``: shape ``(M, C)``."""
        codes = self._codes_of(len(p)).to(p.dtype)
        with torch.autocast(p.device.type, enabled=False):
            through = torch.zeros_like(p)
            for r, part in enumerate(self.parts):
                through = through + codes[:, r, None] * (p @ part.to(p.dtype))
        return through

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        return self._columns(self._codes_of(len(labels)), labels)

    def to_dense(self) -> Tensor:
        """The mean of T over these samples, shape ``(C, C)``."""
        return torch.einsum("r,rij->ij", self.codes.mean(dim=0), self.parts)
