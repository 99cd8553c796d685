"""What a loader reads: inputs, labels, a choice of samples, and the order they come in.

Batches are made whole: one gather for the inputs and one for the labels, no Python call per sample.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from noisylightning.data._random import seeded_generator
from noisylightning.errors import BadValue

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""From a batch as stored to a batch as the network takes it, for example ``Normalize``."""

Batch: TypeAlias = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor, Tensor, Tensor]


class Augmentation(Protocol):
    """A random variation of inputs, a batch at once, that gets its chance from outside.

    Attributes:
        num_draws: How many numbers it wants a sample.
    """

    num_draws: int

    def __call__(self, inputs: Tensor, draws: Tensor, /) -> Tensor:
        """Vary a batch of B inputs by ``draws``, uniform in [0, 1), float32 of shape (B, num_draws)."""


class Inputs(Protocol):
    """N inputs that are read by the batch; a tensor is one."""

    def __len__(self) -> int:
        """Number of inputs N."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The inputs at ``index``, int64 of shape (B,), stacked to shape (B, ...)."""


class LabelledView(Dataset[Any]):
    """A choice of samples of a data set, with the labels that the reader shall see.

    Args:
        inputs: All N inputs.
        labels: Labels of all N, int64, shape (N,).
        index: The samples that belong to the view, int64, shape (M,).
        transform: Applied to every batch.
        augmentation: Applied before it. Its draws depend on seed, epoch and sample, not on batches or workers.
        seed: Seed of the augmentation.
        with_index: Whether a batch is ``(inputs, labels, index)``, the index being the place among all N.

    Attributes:
        epoch: The epoch that the augmentation is drawn for; the sampler keeps it.

    Example:
        >>> view = LabelledView(torch.arange(10.0), torch.arange(10), index=torch.tensor([3, 7]))
        >>> len(view), view[1], view.__getitems__([1, 0])
        (2, (tensor(7.), tensor(7)), (tensor([7., 3.]), tensor([7, 3])))
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: Tensor,
        index: Tensor,
        transform: Transform | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        with_index: bool = False,
    ) -> None:
        device = inputs.device if isinstance(inputs, Tensor) else torch.device("cpu")
        self.inputs = inputs
        self.labels = labels.to(device)
        self.index = index.to(device)
        self.transform = transform
        self.augmentation = augmentation
        self.seed = seed
        self.with_index = with_index
        self.epoch = 0
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def in_memory(self) -> bool:
        """Whether inputs are held in memory, so that reading them needs no workers."""
        return isinstance(self.inputs, Tensor)

    def _draws(self, num_draws: int) -> Tensor:
        """All samples' draws of this epoch, of shape ``(N, num_draws)``."""
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = seeded_generator("augmentation", self.seed, self.epoch)
            draws = torch.rand(len(self.labels), num_draws, generator=generator, dtype=torch.float32)
            self._drawn = self.epoch, draws.to(self.index.device)
        return self._drawn[1]

    def _read(self, index: Tensor) -> Tensor:
        # for a tensor index_select copies whole samples; inputs[index] is three times slower
        return self.inputs.index_select(0, index) if isinstance(self.inputs, Tensor) else self.inputs[index]

    def read(self, index: Tensor) -> Tensor:
        """Inputs as stored, varied where there is an augmentation.

        Args:
            index: Their places among all N, int64, shape (B,).
        """
        inputs = self._read(index)
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, self._draws(self.augmentation.num_draws).index_select(0, index))
        return inputs

    def __getitems__(self, positions: list[int]) -> Batch:
        # DataLoader looks for this name and then makes one call a batch
        index = self.index.index_select(0, torch.tensor(positions, device=self.index.device))
        inputs = self.read(index)
        if self.transform is not None:
            inputs = self.transform(inputs)
        labels = self.labels.index_select(0, index)
        return (inputs, labels, index) if self.with_index else (inputs, labels)

    def __getitem__(self, position: int) -> Batch:
        inputs, labels, *index = self.__getitems__([range(len(self))[position]])  # range: negative and out of range
        return (inputs[0], labels[0], index[0][0]) if index else (inputs[0], labels[0])


class ViewsAtRandom(LabelledView):
    """A choice of samples of which each epoch sees one of several stored views, by seed, epoch and sample.

    Args:
        inputs: The first views of all N samples, then the second ones, and so on: V N inputs.
        labels: Labels of all N, see :class:`LabelledView`.
        index: The samples that belong to the view, int64, shape (M,).
        transform: See :class:`LabelledView`.
        seed: Seed of the choice.
        with_index: See :class:`LabelledView`.

    Example:
        >>> view = ViewsAtRandom(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.arange(2), index=torch.arange(2))
        >>> [sorted({float(view[i][0]) for view.epoch in range(9)}) for i in range(2)]
        [[0.0, 10.0], [1.0, 11.0]]
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        index: Tensor,
        transform: Transform | None = None,
        seed: int = 0,
        with_index: bool = False,
    ) -> None:
        super().__init__(inputs, labels, index, transform, seed=seed, with_index=with_index)
        self.num_views = len(inputs) // len(labels)

    def read(self, index: Tensor) -> Tensor:
        """Inputs of the views that this epoch has drawn, see :meth:`LabelledView.read`."""
        chosen = (self._draws(1).index_select(0, index).flatten() * self.num_views).long()
        return self._read(chosen * len(self.labels) + index)


class JointView(Dataset[Any]):
    """Samples with noisy labels, and after them trusted ones, whose labels are right; batches tell which are which.

    A batch is ``(inputs, labels, index, trusted)``: the places of the samples in the training data, and whether each is
    trusted, bool of shape (B,). If labels of one kind are probabilities, those of the other become such.

    Args:
        noisy: The samples with noisy labels.
        trusted: The trusted ones.
        apart: Whether these are no part of the data that the others are of: their places are then those after it.

    Raises:
        ValueError: At a batch, if inputs of the one kind are of another shape than those of the other.

    Example:
        >>> inputs, noisy_labels, labels = torch.arange(4.0), torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
        >>> noisy = LabelledView(inputs, noisy_labels, index=torch.tensor([0, 1, 3]))
        >>> view = JointView(noisy, LabelledView(inputs, labels, index=torch.tensor([2])))
        >>> view.__getitems__([3, 0])
        (tensor([2., 0.]), tensor([1, 1]), tensor([2, 0]), tensor([ True, False]))
    """

    def __init__(self, noisy: LabelledView, trusted: LabelledView, apart: bool = False) -> None:
        self.noisy = noisy
        self.trusted = trusted
        self.first = len(noisy.labels) if apart else 0

    def __len__(self) -> int:
        return len(self.noisy) + len(self.trusted)

    @property
    def in_memory(self) -> bool:
        """Whether all inputs are held in memory."""
        return self.noisy.in_memory and self.trusted.in_memory

    @property
    def epoch(self) -> int:
        """The epoch that augmentations are drawn for; the sampler keeps it."""
        return self.noisy.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.noisy.epoch = self.trusted.epoch = epoch

    def __getitems__(self, positions: list[int]) -> Batch:
        num_noisy = len(self.noisy)
        noisy = [position for position in positions if position < num_noisy]
        trusted = [position - num_noisy for position in positions if position >= num_noisy]
        parts: list[tuple[Tensor, ...]] = [
            (*view.__getitems__(of_view)[:2], view.index.index_select(0, _on(view.index, of_view)) + first)
            for view, of_view, first in ((self.noisy, noisy, 0), (self.trusted, trusted, self.first))
            if of_view
        ]
        if len(parts) == 2:
            parts = self._alike(*parts)
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        where = [position >= num_noisy for position in positions]
        flags = torch.tensor(where, device=columns[1].device)
        if len(parts) == 2:
            back = flags.byte().argsort(stable=True).argsort()
            columns = [column.index_select(0, back) for column in columns]
        inputs, labels, index = columns
        return inputs, labels, index, flags

    def _alike(self, noisy: tuple[Tensor, ...], trusted: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        if noisy[0].shape[1:] != trusted[0].shape[1:]:
            raise BadValue(
                f"Training samples are of shape {tuple(noisy[0].shape[1:])}, trusted ones of"
                f" {tuple(trusted[0].shape[1:])}, so that no batch holds both: give trusted ones of the same form."
            )
        soft = next((part[1] for part in (noisy, trusted) if part[1].is_floating_point()), None)
        if soft is None:
            return [noisy, trusted]
        return [
            (part[0], part[1] if part[1].is_floating_point() else F.one_hot(part[1], soft.shape[1]).to(soft), part[2])
            for part in (noisy, trusted)
        ]

    def __getitem__(self, position: int) -> Batch:
        inputs, labels, index, trusted = self.__getitems__([range(len(self))[position]])  # type: ignore[misc]
        return inputs[0], labels[0], index[0], trusted[0]


def _on(index: Tensor, positions: list[int]) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device=index.device)


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by seed and epoch alone, so that a resumed run reads the same order as one that never stopped.

    One process or many, each rank reads its own share; shares are padded to equal length, as in
    :class:`~torch.utils.data.DistributedSampler`. Lightning sets the epoch and, because of the base class, leaves the
    sampler as it is on several ranks.

    Args:
        view: What to shuffle; told the epoch too, for its augmentation.
        seed: Seed of the order.
        num_replicas: Number of processes that share the samples.
        rank: Which of them this one is.

    Example:
        >>> view = LabelledView(torch.arange(4.0), torch.arange(4), index=torch.arange(4))
        >>> sampler = EpochSampler(view, seed=0)
        >>> sampler.set_epoch(2)
        >>> list(sampler), list(sampler), view.epoch
        ([2, 0, 3, 1], [2, 0, 3, 1], 2)
    """

    def __init__(self, view: LabelledView | JointView, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(view, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.view = view

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's order, and augmentation, comes next."""
        super().set_epoch(epoch)
        self.view.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.view), generator=seeded_generator("order", self.seed, self.epoch))
        padded = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        return iter(padded[self.rank :: self.num_replicas].tolist())


class ShareSampler(DistributedSampler[Any]):
    """This process's share of the samples, in order: nothing padded, nothing twice, so that every count is exact.

    Shares may differ in length by one. Lightning leaves the sampler as it is on several ranks, because of the base
    class, which pads.

    Args:
        view: What to read.
        num_replicas: Number of processes that share the samples.
        rank: Which of them this one is.

    Raises:
        ValueError: If there are fewer samples than processes.

    Example:
        >>> view = LabelledView(torch.arange(5.0), torch.arange(5), index=torch.arange(5))
        >>> [list(ShareSampler(view, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, view: LabelledView, num_replicas: int, rank: int) -> None:
        if len(view) < num_replicas:
            raise BadValue(f"{len(view)} samples cannot be shared by {num_replicas} processes: use fewer processes.")
        super().__init__(view, num_replicas=num_replicas, rank=rank, shuffle=False)
        self.share = range(rank, len(view), num_replicas)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)
