"""What every T does, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisylightning.errors import BadType, BadValue
from noisylightning.kernels import cross_entropy as kernels
from noisylightning.tensors import log_softmax
from noisylightning.transition.check import LARGEST_CONDITION, check_condition, condition_number, invert_transition


class Transition(nn.Module):
    """A row-stochastic T, ``T[i, j] = p(noisy = j | clean = i)``.

    The corrections and the functions in :mod:`noisylightning.functional` take one wherever they take a tensor. A
    subclass gives T as a whole in :meth:`to_dense`, differentiably if T learns, and is complete; what its structure
    makes cheaper it overrides (:class:`~noisylightning.transition.structured.StructuredTransition`). Parameters of a
    subclass are trained with the network's. Everything that T is made of belongs in its state dict.

    Args:
        num_classes: The number of classes C.

    Raises:
        ValueError: Fewer than two classes.

    Example:
        >>> class Learnt(Transition):
        ...     def __init__(self, num_classes):
        ...         super().__init__(num_classes)
        ...         self.scores = nn.Parameter(4 * torch.eye(num_classes))
        ...
        ...     def to_dense(self):
        ...         return self.scores.softmax(1)
        >>> Learnt(3).log_likelihood(torch.zeros(1, 3), torch.tensor([0])).exp()
        tensor([0.3333], grad_fn=<ExpBackward0>)
    """

    needs_features: ClassVar[bool] = False
    """Whether :meth:`at` needs the features of the samples."""

    is_identity: bool = False
    """Whether T is the identity, so that a correction is its base loss and need not compute with T."""

    max_condition: float | None = None
    """What the condition number may be at most, once :meth:`factorize` was told."""

    waits: bool = False
    """Whether T is the identity because no estimate has come yet."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise BadValue(f"label noise needs at least 2 classes, got {num_classes}.")
        self.num_classes = num_classes
        self.register_load_state_dict_pre_hook(_check_sizes)
        self.register_load_state_dict_post_hook(_refresh)

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``."""
        raise NotImplementedError(f"{type(self).__name__} defines no to_dense(): a Transition must.")

    @property
    def is_class_conditional(self) -> bool:
        """Whether T is the same for every sample, so that noise depends on the class alone."""
        return not self.needs_features and type(self).at is Transition.at

    def at(self, features: Tensor | None, index: Tensor | None) -> Transition:
        """The T of these samples: itself, but for a T that depends on the sample.

        Args:
            features: What the network knows of each sample, shape ``(N, D)``.
            index: Positions of the samples in the data set, shape ``(N,)``.
        """
        return self

    def penalty(self, logits: Tensor) -> Tensor | None:
        """What a T that learns adds to the training loss, a scalar; None for nothing.

        Args:
            logits: The network's scores of the batch, ``(N, C, d1, ...)``.
        """
        return None

    def hold(self, transition: Tensor) -> None:
        """Be this T, and do not learn, until :meth:`start_from`; arguments as there."""
        self.start_from(transition)

    def await_estimate(self) -> None:
        """Be the identity until :meth:`start_from`, where this kind of T tells before and after; else stay as it is."""

    def notice_identity(self) -> None:
        """Bring :attr:`is_identity` up to date, after T was set or loaded."""

    def take_details(self, details: Mapping[str, Tensor]) -> None:
        """Take what an estimator found beside T-hat, after :meth:`start_from`; most have no use for it.

        Args:
            details: By name, see ``TransitionEstimator.details``.
        """

    def start_from(self, estimate: Tensor) -> None:
        """Take the values of an estimated T, in place.

        Args:
            estimate: Row-stochastic, shape ``(C, C)``, dense or sparse.

        Raises:
            TypeError: This kind of T cannot, or the estimate is no floating tensor.
            ValueError: The estimate is not row-stochastic, or not of this number of classes.
        """
        raise BadType(
            f"a {type(self).__name__} cannot take the values of a dense T: create the correction with num_classes "
            "instead, or, for a SparseTransition, estimate T with max_entries."
        )

    # Through T

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``log (p T)_y``, p the softmax: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        return kernels.log_likelihood(logits, labels, self.to_dense().t())

    def mean_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`log_likelihood`: a scalar."""
        return kernels.mean_cross_entropy(logits, labels, self.to_dense().t())

    def log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``, p the softmax: from scores ``(M, C)`` to ``(M, C)``."""
        return kernels.log_matmul(log_softmax(logits), self.to_dense())

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        return self.to_dense().t().index_select(0, labels)

    # Back through T

    def invert(self) -> Tensor:
        """``T^-1``, shape ``(C, C)``.

        Raises:
            ValueError: T is singular, or its condition number past :attr:`max_condition`.
        """
        bound = LARGEST_CONDITION if self.max_condition is None else self.max_condition
        return invert_transition(self.to_dense(), bound)

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""
        inverse = self.invert()
        if not target.is_floating_point():
            return inverse.index_select(0, target).to(dtype)
        with torch.autocast(target.device.type, enabled=False):
            return target.to(dtype) @ inverse.to(dtype)

    def unbiased_log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``sum_k (T^-1)_yk log p_k``, whose mean over the noisy labels is the clean label's ``log p``.

        Patrini et al. (2017), Theorem 1.

        Args:
            logits: Scores, shape ``(M, C)``.
            labels: Noisy labels, shape ``(M,)``.

        Returns:
            Shape ``(M,)``.
        """
        return kernels.log_likelihood(logits, labels, self.invert(), backward=True)

    def mean_unbiased_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the mean of :meth:`unbiased_log_likelihood`: a scalar."""
        return kernels.mean_cross_entropy(logits, labels, self.invert(), backward=True)

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``: the most by which backward correction can amplify a loss."""
        return condition_number(self.to_dense()).item()

    def factorize(self, max_condition: float) -> None:
        """Prepare the inverse; from then on it follows when T is loaded or set.

        Args:
            max_condition: Refuse a T whose condition number is larger.

        Raises:
            ValueError: T is singular, or its condition number past the bound.
        """
        check_condition(self.condition_number(), max_condition)
        self.max_condition = max_condition

    # Checks and state

    def check_logits(self, logits: Tensor) -> None:
        """Raise unless T goes with the scores ``(N, C, d1, ...)``; reads no values."""
        classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
        if self.num_classes != classes:
            raise BadValue(f"T is for {self.num_classes} classes but logits have {classes}.")

    def check_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Raise unless a saved state is of this T's sizes; called before anything of it is copied.

        Args:
            saved: Names and values, as in :meth:`state_dict`.

        Raises:
            ValueError: Parts are missing, or of other sizes.
        """
        for name, mine in self.state_dict().items():
            if name not in saved:
                raise BadValue(
                    f"the checkpoint's T has no {name!r}, which a {type(self).__name__} is made of: build T as when it "
                    "was saved."
                )
            if saved[name].shape != mine.shape:
                raise BadValue(
                    f"the checkpoint's T has {name!r} of shape {tuple(saved[name].shape)}, but this "
                    f"{type(self).__name__}'s has {tuple(mine.shape)}: build T as when it was saved."
                )

    def extra_repr(self) -> str:
        """The number of classes."""
        return f"num_classes={self.num_classes}"


def _check_sizes(transition: Transition, state: dict[str, Any], prefix: str, *_: Any) -> None:
    saved = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if saved:
        transition.check_saved(saved)


def _refresh(transition: Transition, _: Any) -> None:
    """What was derived from the T before does not belong to the loaded one."""
    transition.notice_identity()
    if transition.max_condition is not None:
        transition.factorize(transition.max_condition)
