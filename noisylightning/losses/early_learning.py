"""Early-learning regularization: the one loss that remembers what the network used to say about each sample."""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.losses import check_interval, early_learning_regularization
from noisylightning.losses.base import Loss
from noisylightning.losses.sample_index import check_index
from noisylightning.tensors import expectation, log_softmax, pick


class EarlyLearningRegularization(Loss):
    r"""Early-learning regularization: ``l_j = -log p_j + strength * log(1 - sum_k p_k t_k)``.

    Liu et al. (2020, NeurIPS), Section 4: ``t``, the sample's moving average of p, ``t <- m t + (1 - m) p`` at each
    training step from ``t = 0``, holds what the network learnt early, before it fits wrong labels; the second term
    keeps p near it. Neither proper nor symmetric.

    The averages are a buffer, so they are saved in and restored from checkpoints. They move in training mode only; in
    evaluation mode, where samples are not those of the training set, the loss is cross-entropy and no index is needed.
    Under ``torch.distributed`` the ranks exchange their samples, so that each holds the averages of all.

    Args:
        num_samples: Number of training samples; indices run from 0 to ``num_samples - 1``.
        num_classes: Number of classes C.
        strength: Weight of the regularizer; the paper uses 3 on CIFAR-10 and 7 on CIFAR-100.
        momentum: ``m``; the paper uses 0.7 on CIFAR-10 and 0.9 on CIFAR-100.
        floor: The regularizer sees p clipped to ``[floor, 1 - floor]``, so that it is finite; at 0 it is not clipped.
        **kwargs: ``weight``, ``ignore_index`` and ``reduction``, as in :class:`~noisylightning.losses.Loss`.

    Raises:
        ValueError: If a number of samples or classes is not positive, ``strength`` negative or not finite,
            ``momentum`` outside [0, 1) or ``floor`` outside [0, 0.5).

    Example:
        >>> import torch
        >>> loss = EarlyLearningRegularization(num_samples=100, num_classes=2)
        >>> index = torch.tensor([7, 42])
        >>> loss(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0]), index)
        tensor(0.9932)
        >>> loss.average[index]
        tensor([[0.2946, 0.0054],
                [0.0054, 0.2946]])
    """

    needs_index: ClassVar[bool] = True

    average: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        strength: float = 3.0,
        momentum: float = 0.7,
        floor: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_interval("num_samples", num_samples, "[1, inf)", "how many training samples there are")
        check_interval("num_classes", num_classes, "[2, inf)", "how many classes there are")
        check_interval("strength", strength, "[0, inf)", "the weight of the regularizer")
        check_interval("momentum", momentum, "[0, 1)", "how much of the average stays at a step")
        check_interval("floor", floor, "[0, 0.5)", "the bound to which the regularizer's p is clipped")
        self.strength = strength
        self.momentum = momentum
        self.floor = floor
        self.register_buffer("average", torch.zeros(num_samples, num_classes))
        self._index_checked = False

    def vector(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """The loss for every label; in training mode, the averages move first.

        Args:
            logits: Scores, shape ``(N, C)``.
            index: Positions of the samples in the training set, shape ``(N,)``; needed in training mode.

        Returns:
            Shape ``(N, C)``.

        Raises:
            ValueError: If the index is missing, of another shape or outside the training set, or logits are not
                ``(N, C)``.
            TypeError: If the index is not int64.
        """
        if not self.training:
            return -log_softmax(logits)
        index = self._check_index(logits, index)
        log_p = log_softmax(logits)
        with torch.no_grad():
            rows, p = _of_all_ranks(index, log_p.exp().to(self.average.dtype))
            self.average[rows] = self.momentum * self.average[rows] + (1 - self.momentum) * p
        return early_learning_regularization(log_p, self.average[index], self.strength, self.floor)

    def values(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """The loss of each sample, shape ``(N,)``, neither weighted nor reduced; arguments as in :meth:`vector`."""
        vector = self.vector(logits, index)
        return expectation(vector, target) if target.is_floating_point() else pick(vector, target)

    def _check_index(self, logits: Tensor, index: Tensor | None) -> Tensor:
        samples, classes = self.average.shape
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise BadValue(f"logits have shape {tuple(logits.shape)} but the averages need (N, {classes}).")
        mend = "set num_samples to the size of the training set"
        index = check_index(index, len(logits), samples, "early-learning regularization", mend, not self._index_checked)
        self._index_checked = True
        return index.to(self.average.device)


def _of_all_ranks(index: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The indices and predictions of all ranks, in the order of ranks; ranks may have different numbers of them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return index, p
    sizes = [torch.empty(1, dtype=torch.int64, device=index.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(index)], device=index.device))
    longest = int(torch.cat(sizes).max())

    def gather(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    return gather(index), gather(p)
