"""What a base loss is: a vector l(p) with one entry per label, from which every correction is built."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisylightning.errors import BadValue
from noisylightning.functional.checks import check_inputs, mask_ignored, validate_target
from noisylightning.functional.reduction import Reduction, reduce_values, weigh
from noisylightning.tensors import expectation, log_softmax, pick, values_readable


class Loss(nn.Module):
    """Base loss: called as ``loss(logits, target)`` with the shapes of :func:`torch.nn.functional.cross_entropy`.

    A subclass defines :meth:`vector`, the whole vector ``l`` whose entry ``j`` is the loss were ``j`` the label, and
    says what is known about it in :attr:`proper` and :attr:`symmetric`. A loss of ``log p_y`` alone is shorter as a
    :class:`LikelihoodLoss`. A loss that keeps a state per sample sets :attr:`needs_index` and takes a third
    argument ``index``, shape ``(N,)``, in :meth:`vector`, :meth:`values` and :meth:`forward`.

    Args:
        weight: One factor per class, shape ``(C,)``: the loss becomes ``w_j l_j``, and the mean divides by the sum
            of the factors, as in :func:`torch.nn.functional.cross_entropy`.
        ignore_index: Targets with this index count nothing.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: A weight that is not a vector of finite non-negative numbers, or an unknown reduction.
    """

    proper: bool = False
    """Proper composite with respect to softmax: minimised by the true posterior, so forward's theorem holds."""
    symmetric: bool = False
    """The sum of the entries of :meth:`vector` is constant, so that the loss by itself is robust to symmetric noise."""
    of_scores: ClassVar[bool] = False
    """Whether the loss sees the scores themselves, and not only ``softmax(logits)``, which a shift leaves alone."""
    needs_index: ClassVar[bool] = False
    """Whether the methods take the samples' positions in the data set as a further argument ``index``."""
    of_likelihood: ClassVar[bool] = False
    """Whether ``of_log_likelihood``, a function of the label's ``log p_y`` alone, says all about the loss.

    Like :attr:`is_cross_entropy` it is inherited until one of the methods that it speaks of is overridden."""
    is_cross_entropy: ClassVar[bool] = False
    """Whether the loss is ``-log p_y``, weighted and reduced as here, so that the compiled kernel serves it."""

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise BadValue(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.get_default_dtype())
            if weight.ndim != 1 or not bool((weight.isfinite() & (weight >= 0)).all()):
                raise BadValue(f"weight must be a vector of finite non-negative class weights, got {weight.tolist()}.")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self._target_checked = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        values = ("vector", "values", "weighted")
        for flag, methods in (
            ("of_likelihood", values),
            ("is_cross_entropy", (*values, "of_log_likelihood", "reduce")),
        ):
            said = next(parent for parent in cls.__mro__ if flag in vars(parent))
            if any(getattr(cls, name, None) is not getattr(said, name, None) for name in methods):
                setattr(cls, flag, False)

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.

        Returns:
            Shape ``(N, C, d1, ...)``; entry ``j`` is the (unweighted) loss were ``j`` the label.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no vector(logits): every base loss must.")

    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample, neither weighted nor reduced.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            labels: Class indices ``(N, d1, ...)``, none of them ignored (see :meth:`check_and_mask`), or probabilities
                ``q`` of shape ``(N, C, d1, ...)``, whose loss is the expectation ``sum_j q_j l_j``.

        Returns:
            Shape ``(N, d1, ...)``.
        """
        vector = self.vector(logits)
        return expectation(vector, labels) if labels.is_floating_point() else pick(vector, labels)

    def reduce(self, values: Tensor, labels: Tensor, mask: Tensor | None = None, *, weighted: bool = False) -> Tensor:
        """Weight, mask and reduce :meth:`values` as :func:`torch.nn.functional.cross_entropy` does.

        Args:
            values: Losses, shape ``(N, d1, ...)``.
            labels: Class indices of the same shape, or probabilities, whose values carry the class weights already.
            mask: Which values count. Default: all.
            weighted: Whether the values of class indices carry the class weights too.

        Returns:
            A scalar, or shape ``(N, d1, ...)`` for ``reduction="none"``.
        """
        return reduce_values(values, labels, mask=mask, weight=self.weight, reduction=self.reduction, weighted=weighted)

    def forward(self, logits: Tensor, target: Tensor, *index: Tensor) -> Tensor:
        """The reduced loss.

        Args:
            logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``.
            target: Class indices, shape ``()`` or ``(N, d1, ...)``, or probabilities, shaped as ``logits``.
            *index: Positions of the samples in the data set, shape ``()`` or ``(N,)``, for a loss that
                :attr:`needs_index`.

        Returns:
            A scalar, or one value per target for ``reduction="none"``.

        Raises:
            TypeError: A dtype that is neither a score, an index nor a probability.
            ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.
        """
        if logits.ndim == 1:
            check_inputs(logits, target)
            return self.forward(logits[None], target[None], *(position.reshape(-1) for position in index)).reshape(())
        labels, mask = self.check_and_mask(logits, target)
        return self.reduce(self.values(logits, self.weighted(labels), *index), labels, mask)

    def weighted(self, labels: Tensor) -> Tensor:
        """Probabilities times the class weights, by which weights enter an expectation; class indices as they are."""
        return weigh(labels, self.weight) if labels.is_floating_point() else labels

    def check_and_mask(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Check what the loss was called with, and mask the labels that are to be ignored.

        Values are read at every call on the CPU, and at the first on an accelerator, where reading them waits.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            target: Class indices ``(N, d1, ...)`` or probabilities ``(N, C, d1, ...)``.

        Returns:
            The labels, with class 0 in place of ``ignore_index``, and the mask of those that count: None where all do.

        Raises:
            TypeError: A dtype that is neither a score, an index nor a probability.
            ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.
        """
        check_inputs(logits, target)
        classes, weight = logits.shape[1], self.weight
        if weight is not None and len(weight) != classes:
            raise BadValue(f"weight has {len(weight)} entries but logits have {classes} classes.")
        if not (self._target_checked or target.is_cpu) and values_readable(target):
            validate_target(target, classes, self.ignore_index)
            self._target_checked = True
        return mask_ignored(target, classes, self.ignore_index)


class LikelihoodLoss(Loss):
    """A base loss that depends on the label ``y`` only through ``log p_y``.

    A subclass defines the one elementwise function :meth:`of_log_likelihood`. Corrections then need no more than one
    probability per sample: forward correction evaluates it at ``log (p T)_y``, which costs one column of T.
    """

    of_likelihood: ClassVar[bool] = True

    def of_log_likelihood(self, log_p: Tensor) -> Tensor:
        """The loss as a function of the label's log-probability, elementwise.

        Args:
            log_p: Log-probabilities, any shape, at most zero.

        Returns:
            Losses, same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no of_log_likelihood(log_p): a likelihood loss must.")

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label, shape ``(N, C, d1, ...)``."""
        return self.of_log_likelihood(log_softmax(logits))

    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample, shape ``(N, d1, ...)``: only the label's own probability is looked at."""
        if labels.is_floating_point():
            return super().values(logits, labels)
        return self.of_log_likelihood(pick(log_softmax(logits), labels))
