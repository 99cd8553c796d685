"""What a base loss is: a vector l(p) with one entry per label, from which every correction is built."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from noisylightning.functional._checks import check_inputs, validate_target, values_readable
from noisylightning.functional._reduction import Reduction, log_softmax, pick, reduce_values, weigh
from noisylightning.functional._reduction import expectation as expectation


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
    needs_index: ClassVar[bool] = False
    """Whether the methods take the samples' positions in the data set as a further argument ``index``."""

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
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.get_default_dtype())
            if weight.ndim != 1 or not bool((weight.isfinite() & (weight >= 0)).all()):
                raise ValueError(
                    f"weight must be a vector of finite non-negative class weights, got {weight.tolist()}."
                )
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self._target_checked = False

    def vector(self, logits: Tensor) -> Tensor:
        """The loss for every label.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.

        Returns:
            Shape ``(N, C, d1, ...)``; entry ``j`` is the (unweighted) loss were ``j`` the label.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no vector(logits): every base loss must.")

    def values(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, neither weighted nor reduced.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            target: Class indices ``(N, d1, ...)``, or probabilities ``q`` of shape ``(N, C, d1, ...)``, whose loss is
                the expectation ``sum_j q_j l_j``.

        Returns:
            Shape ``(N, d1, ...)``; ignored targets get the loss of class 0, which :meth:`reduce` drops.
        """
        vector = self.vector(logits)
        return expectation(vector, target) if target.is_floating_point() else pick(vector, target, self.ignore_index)

    def reduce(self, values: Tensor, target: Tensor, *, weighted: bool = False) -> Tensor:
        """Weight, mask and reduce :meth:`values` as :func:`torch.nn.functional.cross_entropy` does.

        Args:
            values: Losses, shape ``(N, d1, ...)``.
            target: Class indices of the same shape, or probabilities, whose values carry the class weights already.
            weighted: Whether the values of class indices carry them too.

        Returns:
            A scalar, or shape ``(N, d1, ...)`` for ``reduction="none"``.
        """
        return reduce_values(
            values,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            weighted=weighted,
        )

    def forward(self, logits: Tensor, target: Tensor, *index: Tensor) -> Tensor:
        """The reduced loss.

        Args:
            logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``.
            target: Class indices, shape ``()`` or ``(N, d1, ...)``, or probabilities, shaped as ``logits``.
            *index: Positions of the samples in the data set, shape ``(N,)``, for a loss that :attr:`needs_index`.

        Returns:
            A scalar, or one value per target for ``reduction="none"``.

        Raises:
            TypeError: A dtype that is neither a score, an index nor a probability.
            ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.
        """
        self.check(logits, target)
        if logits.ndim == 1:
            return self.forward(logits[None], target[None], *index).reshape(())
        labels = self.weighted(target) if target.is_floating_point() else target
        return self.reduce(self.values(logits, labels, *index), target)

    def weighted(self, target: Tensor) -> Tensor:
        """Probabilities times the class weights: the way by which weights enter an expectation over labels."""
        return weigh(target, self.weight)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Raise on wrong shapes and dtypes, and on wrong values: every time on the CPU, else the first time only."""
        check_inputs(logits, target)
        classes = logits.shape[1] if logits.ndim > 1 else logits.shape[0]
        if self.weight is not None and len(self.weight) != classes:
            raise ValueError(f"weight has {len(self.weight)} entries but logits have {classes} classes.")
        if values_readable(target) and (target.device.type == "cpu" or not self._target_checked):
            validate_target(target, classes, self.ignore_index)
            self._target_checked = True


class LikelihoodLoss(Loss):
    """A base loss that depends on the label ``y`` only through ``log p_y``.

    A subclass defines the one elementwise function :meth:`of_log_likelihood`. Corrections then need no more than one
    probability per sample: forward correction evaluates it at ``log (p T)_y``, which costs one column of T.
    """

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

    def values(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample, shape ``(N, d1, ...)``: only the label's own probability is looked at."""
        if target.is_floating_point():
            return super().values(logits, target)
        return self.of_log_likelihood(pick(log_softmax(logits), target, self.ignore_index))
