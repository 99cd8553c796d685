"""T that depends on where a label comes from: one matrix for each annotator, or any other group of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue, NotReady
from noisylightning.kernels import cross_entropy as kernels
from noisylightning.tensors import log_softmax
from noisylightning.transition.base import Transition
from noisylightning.transition.check import validate_transition


class GroupedTransition(Transition):
    """A T for each group of samples: for each annotator, where every answer is a sample.

    It knows a sample by its index, which batches must carry (``with_index=True`` in a data module). For forward
    correction and importance reweighting. As a whole, where no sample is at hand, it is the mean over the samples.

    Args:
        matrices: T of each group, shape ``(G, C, C)``.
        groups: The group of each sample of the data set, by its index, int64 of shape ``(N,)``.

    Raises:
        TypeError: If the matrices are not floating, or the groups not int64.
        ValueError: If a matrix is not row-stochastic, or a sample's group is none.

    Example:
        >>> careful, careless = torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.full((2, 2), 0.5)
        >>> transition = GroupedTransition(torch.stack([careful, careless]), groups=torch.tensor([0, 0, 1]))
        >>> of_samples = transition.at(None, index=torch.tensor([2, 0]))
        >>> of_samples.log_likelihood(torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 0])).exp()
        tensor([0.5000, 0.8946])
    """

    matrices: Tensor
    groups: Tensor

    def __init__(self, matrices: Tensor, groups: Tensor) -> None:
        if matrices.ndim != 3 or len(matrices) == 0:
            raise BadValue(f"matrices must be of shape (G, C, C), one a group, got {tuple(matrices.shape)}.")
        for matrix in matrices:
            validate_transition(matrix)
        super().__init__(matrices.shape[1])
        if groups.dtype != torch.int64:
            raise BadType(f"groups must be int64, the group of each sample, got {groups.dtype}.")
        if groups.ndim != 1 or not len(groups) or groups.min() < 0 or groups.max() >= len(matrices):
            raise BadValue(
                f"groups must say for each sample which of the {len(matrices)} groups it is of, counted from 0, got"
                f" shape {tuple(groups.shape)}{f' and group {int(groups.max())}' if groups.numel() else ''}."
            )
        self.register_buffer("matrices", matrices.clone())
        self.register_buffer("groups", groups.clone())

    def to_dense(self) -> Tensor:
        """The mean over the samples, ``(C, C)``."""
        shares = torch.bincount(self.groups, minlength=len(self.matrices)).to(self.matrices) / len(self.groups)
        return (shares[:, None, None] * self.matrices).sum(dim=0)

    def at(self, features: Tensor | None, index: Tensor | None) -> Transition:
        """The T of these samples, by their index; arguments as in :meth:`Transition.at`."""
        if index is None:
            raise NotReady(
                "GroupedTransition knows a sample by its index, but the batch carries none: set with_index=True in the"
                " data module (--data.with_index true)."
            )
        return _OfSamples(self.matrices, self.groups[index.to(self.groups.device)])

    def factorize(self, max_condition: float) -> None:
        """Refuse: there is no inverse of a T for each group."""
        raise BadType("A GroupedTransition has no inverse: use it with ForwardCorrection or ImportanceReweighting.")


class _OfSamples(Transition):
    """The T of each sample of a batch, for the length of one call."""

    def __init__(self, matrices: Tensor, groups: Tensor) -> None:
        super().__init__(matrices.shape[1])
        self.matrices, self.groups = matrices, groups

    def label_columns(self, labels: Tensor) -> Tensor:
        return self.matrices[self.groups, :, labels]

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        return kernels.exact_log_likelihood(log_softmax(logits), self.label_columns(labels))

    def mean_cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -self.log_likelihood(logits, labels).mean()

    def log_posterior(self, logits: Tensor) -> Tensor:
        log_p = log_softmax(logits)
        found = torch.empty_like(log_p)
        for group in self.groups.unique():
            of_group = self.groups == group
            found = found.index_put((of_group,), kernels.log_matmul(log_p[of_group], self.matrices[group]))
        return found
