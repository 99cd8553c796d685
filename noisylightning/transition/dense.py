"""T as a matrix, and the way to a T from whatever a user gives."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from noisylightning.errors import BadType, BadValue
from noisylightning.transition.base import Transition
from noisylightning.transition.check import invert_transition, validate_transition
from noisylightning.transition.load import load_transition
from noisylightning.transition.sparse import SparseTransition


class DenseTransition(Transition):
    """T as a matrix of C by C numbers.

    An :class:`torch.nn.Parameter` is kept, and trained: that the rows stay distributions is then the business of
    whoever gave it (a penalty, a projection, a small rate); a subclass of :class:`Transition` that computes T from
    free scores has no such worry. Its inverse is computed anew at each use. Any other tensor is copied into a buffer.

    Args:
        matrix: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``, shape ``(C, C)``.

    Raises:
        TypeError: It is no floating tensor.
        ValueError: It is not row-stochastic, or wants a gradient without being a Parameter.

    Example:
        >>> transition = DenseTransition(torch.tensor([[0.8, 0.2], [0.0, 1.0]]))
        >>> transition.log_likelihood(torch.zeros(1, 2), torch.tensor([0])).exp()
        tensor([0.4000])
    """

    matrix: Tensor
    inverse: Tensor | None  # kept by factorize

    def __init__(self, matrix: Tensor) -> None:
        validate_transition(matrix)
        super().__init__(len(matrix))
        if isinstance(matrix, nn.Parameter):
            self.matrix = matrix
        elif matrix.requires_grad:
            raise BadValue(
                "the transition matrix wants a gradient that it would not get: pass nn.Parameter(T) to train it, "
                "T.detach() to keep it fixed, or a Transition that computes it."
            )
        else:
            # By columns: one column per sample is what the losses read.
            self.register_buffer("matrix", matrix.clone().t().contiguous().t())
        self.register_buffer("inverse", None, persistent=False)
        self.notice_identity()

    @classmethod
    def view(cls, matrix: Tensor) -> DenseTransition:
        """T for the length of one call: the tensor as it is, neither copied nor checked, whether or not it learns.

        What it is asked about T it answers; it is no module to keep, which has parameters and a state.

        Args:
            matrix: T, shape ``(C, C)``.
        """
        transition = object.__new__(cls)  # a module's constructor would cost a fifth of a small loss
        state = transition.__dict__
        state["matrix"], state["inverse"], state["num_classes"] = matrix, None, matrix.shape[-1] if matrix.ndim else 0
        return transition

    def notice_identity(self) -> None:
        """Bring :attr:`is_identity` up to date; a T that learns is never taken for it."""
        fixed = not (isinstance(self.matrix, nn.Parameter) or self.matrix.is_meta)
        self.is_identity = fixed and torch.equal(self.matrix, torch.eye(self.num_classes).to(self.matrix))

    def to_dense(self) -> Tensor:
        """T itself, shape ``(C, C)``."""
        return self.matrix

    def invert(self) -> Tensor:
        """``T^-1``, shape ``(C, C)``: what :meth:`factorize` kept, or computed now."""
        return super().invert() if self.inverse is None else self.inverse

    def factorize(self, max_condition: float) -> None:
        """Compute the inverse, and keep it unless T learns; it follows when T is loaded or set.

        Args:
            max_condition: Refuse a T whose condition number is larger.

        Raises:
            ValueError: T is singular, or its condition number past the bound.
        """
        inverse = invert_transition(self.matrix.detach(), max_condition)
        if not isinstance(self.matrix, nn.Parameter):
            self.inverse = inverse if self.inverse is None else self.inverse.copy_(inverse)
        self.max_condition = max_condition

    @torch.no_grad()
    def start_from(self, estimate: Tensor) -> None:
        """Take the values of an estimated T, in place; a T whose inverse is refused leaves the old one.

        Args:
            estimate: Row-stochastic, shape ``(C, C)``; a sparse one is written out.

        Raises:
            TypeError: It is no floating tensor.
            ValueError: It is not row-stochastic, not of this number of classes, or cannot be inverted as asked.
        """
        if isinstance(estimate, Tensor) and estimate.layout != torch.strided:
            estimate = estimate.to_dense()
        validate_transition(estimate, self.num_classes)
        old = self.matrix.clone()
        self.matrix.copy_(estimate)
        self.notice_identity()
        if self.max_condition is not None:
            try:
                self.factorize(self.max_condition)
            except ValueError:
                self.matrix.copy_(old)
                self.notice_identity()
                raise

    def check_logits(self, logits: Tensor) -> None:
        """Raise unless T goes with the scores ``(N, C, d1, ...)``; reads no values."""
        classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
        matrix = self.matrix
        if not matrix.is_floating_point():
            raise BadType(f"the transition matrix must be a floating tensor, got {matrix.dtype}.")
        if matrix.shape != (classes, classes):
            raise BadValue(
                f"logits with {classes} classes need a transition matrix of shape {(classes, classes)}, got "
                f"{tuple(matrix.shape)}."
            )
        if matrix.device != logits.device:
            raise BadValue(
                f"the transition matrix is on {matrix.device} but the logits are on {logits.device}: move it with "
                ".to(), or use a correction module, which moves it with the model."
            )


def as_transition(
    transition: Tensor | Transition | str | Path, num_classes: int | None = None, *, copy: bool = True
) -> Transition:
    """A T, from a tensor, from the file that holds one, or as it is.

    Args:
        transition: A tensor ``(C, C)``, dense or sparse, the path of a ``.npy``, ``.csv`` or ``.npz`` file, or a
            :class:`Transition`.
        num_classes: The C that it must have, if that is known.
        copy: Whether a tensor is checked and copied; if not, its values are looked at as they are, for one call.

    Raises:
        TypeError: It is none of these.
        ValueError: It is not row-stochastic, or of another number of classes.

    Example:
        >>> as_transition(torch.eye(3))
        DenseTransition(num_classes=3)
    """
    if not copy and isinstance(transition, Tensor):
        return DenseTransition.view(transition)
    if isinstance(transition, str | Path):
        transition = load_transition(transition)
    if isinstance(transition, Tensor) and transition.layout != torch.strided:
        transition = SparseTransition(transition)
    if not isinstance(transition, Transition):
        transition = DenseTransition(transition)
    if num_classes not in (None, transition.num_classes):
        raise BadValue(
            f"T is for {transition.num_classes} classes but {num_classes} are expected: pass the T of this data set."
        )
    return transition
