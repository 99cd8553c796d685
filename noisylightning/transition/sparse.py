"""T with few entries, and T of separate groups of classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisylightning.errors import BadType, BadValue, NotReady
from noisylightning.kernels.cross_entropy import exact_log_likelihood
from noisylightning.tensors import log_softmax, values_readable
from noisylightning.transition.check import check_condition, validate_transition
from noisylightning.transition.structured import StructuredTransition

LARGEST_GROUP = 2048  # connected classes up to this many are inverted as a dense block


class SparseTransition(StructuredTransition):
    """T with few entries: the loss of a label costs the entries in its column.

    For backward correction, ``T^-1`` is kept for each group of classes that T connects, up to 2,048 of them. The rows
    for a larger group are found by iterating on the diagonal, which must be above 1/2.

    Args:
        matrix: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``, ``(C, C)``, in any sparse layout of torch; or
            the number of classes C, for the identity, which awaits an estimate.

    Raises:
        TypeError: The matrix is not a sparse floating tensor.
        ValueError: It is not square, or not row-stochastic; or there are fewer than two classes.

    Example:
        >>> from noisylightning.transition import pairflip
        >>> transition = SparseTransition(pairflip(4, 0.3).to_sparse())
        >>> transition.product(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        tensor([[0.7000, 0.3000, 0.0000, 0.0000]])
    """

    inverse: "Columns | None"  # T^-1
    inverse_by_rows: "Columns | None"  # T^-1 transposed

    def __init__(self, matrix: Tensor | int) -> None:
        if isinstance(matrix, int):
            classes = torch.arange(matrix)
            self._hold(classes, classes, torch.ones(matrix), matrix)
            return
        if not isinstance(matrix, Tensor) or matrix.layout == torch.strided or not matrix.is_floating_point():
            raise BadType(
                "a SparseTransition takes a floating sparse tensor, matrix.to_sparse(); pass a dense T as is."
            )
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise BadValue(f"the transition matrix must be square, (C, C), got shape {tuple(matrix.shape)}.")
        entries = matrix.to_sparse(layout=torch.sparse_coo).coalesce()
        clean, noisy = entries.indices()
        self._hold(clean, noisy, entries.values(), len(matrix))

    def _hold(self, clean: Tensor, noisy: Tensor, probability: Tensor, num_classes: int) -> None:
        super().__init__(num_classes)
        self.columns = Columns(clean, noisy, probability, num_classes)
        _check_rows(self.columns)
        self.inverse = self.inverse_by_rows = None
        self.iterations = 0
        self.notice_identity()

    def notice_identity(self) -> None:
        """Bring :attr:`is_identity` up to date."""
        columns = self.columns
        self.is_identity = not columns.value.is_meta and bool(
            len(columns.value) == self.num_classes
            and (columns.index == columns.key()).all()
            and (columns.value == 1).all()
        )

    @torch.no_grad()
    def start_from(self, estimate: Tensor) -> None:
        """Take the entries of an estimated sparse T, in place; a T whose inverse is refused leaves the old one.

        Args:
            estimate: Row-stochastic, shape ``(C, C)``, in any sparse layout of torch.

        Raises:
            TypeError: It is not a sparse floating tensor.
            ValueError: It is not row-stochastic, not of this number of classes, or cannot be inverted as asked.
        """
        if isinstance(estimate, Tensor) and estimate.layout == torch.strided:
            super().start_from(estimate)
        found = SparseTransition(estimate.to(self.columns.value))
        if found.num_classes != self.num_classes:
            raise BadValue(
                f"the estimated T is for {found.num_classes} classes but {self.num_classes} are expected: pass the T of"
                " this data set."
            )
        if self.max_condition is not None:
            found.factorize(self.max_condition)
        self.columns, self.inverse, self.inverse_by_rows = found.columns, found.inverse, found.inverse_by_rows
        self.iterations, self.is_identity = found.iterations, found.is_identity

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``log (p T)_y``, p the softmax: from scores ``(M, C)`` and classes ``(M,)`` to ``(M,)``."""
        clean, probability = self.columns.of(labels)
        return exact_log_likelihood(log_softmax(logits).gather(1, clean), probability)

    def label_columns(self, labels: Tensor) -> Tensor:
        """``T[:, y]`` of each label: from classes ``(M,)`` to ``(M, C)``."""
        return self.columns.written_out(labels, self.columns.value.dtype)

    def log_entries(self, log_p: Tensor, sample: Tensor, label: Tensor) -> Tensor:
        """``log (p T)_y`` for the samples at ``sample`` and their ``label``, both ``(K,)``: shape ``(K,)``."""
        clean, probability = self.columns.of(label)
        return exact_log_likelihood(log_p[sample.unsqueeze(1), clean], probability)

    @property
    def terms(self) -> int:
        """The number of entries in the fullest column."""
        return self.columns.width

    def product(self, p: Tensor) -> Tensor:
        """``p T`` for rows of numbers ``(M, C)``: shape ``(M, C)``."""
        return self.columns.left_multiplied(p)

    def inverse_rows(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of ``T^-1`` for classes ``(M,)``, or ``q T^-1`` for probabilities ``(M, C)``: ``(M, C)``, ``dtype``."""
        soft = target.is_floating_point()
        if self.inverse is not None and self.inverse_by_rows is not None:
            if soft:
                return self.inverse.left_multiplied(target.to(dtype))
            return self.inverse_by_rows.written_out(target, dtype)
        if not self.iterations:
            raise NotReady("T has not been inverted yet: call factorize(max_condition) first.")
        rows = target.to(dtype) if soft else _one_hot(target, self.num_classes, dtype)
        rows = rows.t().contiguous().t()  # as the products come out, so that no step needs a transposition
        diagonal = self.columns.diagonal().to(dtype)
        solution = rows / diagonal
        for _ in range(self.iterations):
            solution = solution + (rows - self.product(solution)) / diagonal
        return solution

    def factorize(self, max_condition: float) -> None:
        """Invert T group by group, or make sure that iteration converges.

        Args:
            max_condition: Refuse a T whose condition number is larger.

        Raises:
            ValueError: T is singular, its condition number past the bound, or a large group's diagonal not above 1/2.
        """
        self.inverse = self.inverse_by_rows = None
        groups = self._groups()
        if int(groups.bincount().max()) <= LARGEST_GROUP:
            inverse = _invert_groups(self.columns, groups)
            check_condition(inverse.largest_row_sum(), max_condition)
            self.inverse, self.inverse_by_rows = inverse, inverse.transposed()
            self.max_condition = max_condition
            return
        kept = self.columns.diagonal()
        if not kept.min() > 0.5:
            raise BadValue(
                f"T connects {int(groups.bincount().max())} classes, too many to invert, and keeps only "
                f"{float(kept.min()):.4g} of class {int(kept.argmin())}: iteration needs more than half; use forward "
                "correction."
            )
        check_condition(self.condition_number(), max_condition)
        shrink = float(((1 - kept) / kept.min()).max())
        resolved = torch.finfo(kept.dtype).eps
        self.iterations = 1 if shrink <= resolved else math.ceil(math.log(resolved) / math.log(shrink))
        self.max_condition = max_condition

    def condition_number(self) -> float:
        """The largest absolute row sum of ``T^-1``; for a large group its bound ``1 / (2 min T_ii - 1)``."""
        groups = self._groups()
        if int(groups.bincount().max()) <= LARGEST_GROUP:
            return _invert_groups(self.columns, groups).largest_row_sum()
        kept = float(self.columns.diagonal().min())
        return 1 / (2 * kept - 1) if kept > 0.5 else math.inf

    def check_saved(self, saved: Mapping[str, Tensor]) -> None:
        """Raise unless a saved state is of a sparse T over as many classes; make room for its number of entries."""
        start, index, value = (saved.get(f"columns.{name}", torch.empty(0)) for name in ("start", "index", "value"))
        if start.shape == self.columns.start.shape and index.shape == value.shape == (int(start[-1]),):
            self.columns.make_room(len(value))
        super().check_saved(saved)

    def _groups(self) -> Tensor:
        """For each class, the number of the group of classes that T connects it with."""
        from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
        from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

        clean, noisy = self.columns.index.cpu().numpy(), self.columns.key().cpu().numpy()
        graph = coo_matrix((clean * 0 + 1, (clean, noisy)), shape=(self.num_classes, self.num_classes))
        return torch.from_numpy(connected_components(graph, directed=False)[1]).long().to(self.columns.index.device)


class BlockDiagonalTransition(SparseTransition):
    """T of classes that are only confused within groups, such as the superclasses of CIFAR-100.

    Args:
        blocks: One row-stochastic matrix per group.
        classes: The classes of each group, in the order of its block's rows. Default: consecutive ones.

    Raises:
        ValueError: A block that is not row-stochastic, or classes that are not each in exactly one group.

    Example:
        >>> from noisylightning.transition import symmetric
        >>> groups = BlockDiagonalTransition([symmetric(2, 0.1), symmetric(3, 0.2)], classes=[[0, 3], [1, 2, 4]])
        >>> groups.to_dense()
        tensor([[0.9000, 0.0000, 0.0000, 0.1000, 0.0000],
                [0.0000, 0.8000, 0.1000, 0.0000, 0.1000],
                [0.0000, 0.1000, 0.8000, 0.0000, 0.1000],
                [0.1000, 0.0000, 0.0000, 0.9000, 0.0000],
                [0.0000, 0.1000, 0.1000, 0.0000, 0.8000]])
    """

    def __init__(self, blocks: Sequence[Tensor], classes: Sequence[Sequence[int]] | None = None) -> None:
        for block in blocks:
            validate_transition(block)
        count = sum(len(block) for block in blocks)
        if classes is None:
            ends = torch.tensor([len(block) for block in blocks]).cumsum(0).tolist()
            classes = [range(end - len(block), end) for end, block in zip(ends, blocks, strict=True)]
        if [len(block) for block in blocks] != [len(group) for group in classes]:
            raise BadValue(
                f"blocks of {[len(block) for block in blocks]} rows need as many classes each, got "
                f"{[len(group) for group in classes]}."
            )
        if sorted(label for group in classes for label in group) != list(range(count)):
            raise BadValue(f"classes must hold each of 0 to {count - 1} in exactly one group.")
        labels = [torch.as_tensor(group) for group in classes]
        clean = torch.cat([group.repeat_interleave(len(group)) for group in labels])
        noisy = torch.cat([group.repeat(len(group)) for group in labels])
        probability = torch.cat([block.flatten() for block in blocks])
        self._hold(clean, noisy, probability, count)


class Columns(nn.Module):
    """The entries of a sparse square matrix, column by column.

    Args:
        row: Row of each entry, shape ``(K,)``.
        column: Column of each entry, shape ``(K,)``.
        value: The entries, shape ``(K,)``.
        size: Number of rows, and of columns.
        persistent: Whether a checkpoint keeps them.
    """

    start: Tensor
    index: Tensor
    value: Tensor

    def __init__(self, row: Tensor, column: Tensor, value: Tensor, size: int, persistent: bool = True) -> None:
        super().__init__()
        order = (column * size + row).argsort()
        count = column.bincount(minlength=size)
        self.register_buffer("start", nn.functional.pad(count.cumsum(0), (1, 0)), persistent)
        self.register_buffer("index", row[order], persistent)
        self.register_buffer("value", value[order], persistent)
        self.size = size
        self.width = int(count.max())
        self.register_load_state_dict_post_hook(_measure_width)

    def of(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of some columns, all as long as the longest.

        Args:
            column: Which columns, shape ``(M,)``.

        Returns:
            Rows and entries, both ``(M, L)``; padding has row 0 and entry 0.
        """
        start, end = self.start[column], self.start[column + 1]
        if column.is_cpu and values_readable(column):
            width = int((end - start).max()) if len(column) else 0
        else:
            width = self.width  # the longest of all columns: no need to wait for an accelerator
        position = start.unsqueeze(1) + torch.arange(width, device=column.device)
        inside = position < end.unsqueeze(1)
        position = position.masked_fill(~inside, 0)
        return self.index[position].masked_fill(~inside, 0), self.value[position].masked_fill(~inside, 0)

    def written_out(self, column: Tensor, dtype: torch.dtype) -> Tensor:
        """Some columns with their zeros: ``(M,)`` to ``(M, size)``, ``dtype``."""
        index, value = self.of(column)
        zeros = value.new_zeros(len(column), self.size, dtype=dtype)
        return zeros.scatter_add(1, index, value.to(dtype))

    def make_room(self, entries: int) -> None:
        """Prepare to load another number of entries."""
        self.index = self.index.new_zeros(entries)
        self.value = self.value.new_zeros(entries)

    def key(self) -> Tensor:
        """The column of each entry, shape ``(K,)``."""
        return torch.arange(self.size, device=self.start.device).repeat_interleave(self.start.diff())

    def diagonal(self) -> Tensor:
        """Shape ``(size,)``."""
        here = self.index == self.key()
        return self.value.new_zeros(self.size).index_put((self.index[here],), self.value[here])

    def left_multiplied(self, rows: Tensor) -> Tensor:
        """``rows @ matrix``, shape ``(M, size)``."""
        # A column of the product is a weighted sum of columns of rows: a bag of embeddings, the fastest such sum.
        value = self.value.to(rows.dtype)
        columns = rows.t().contiguous()
        return nn.functional.embedding_bag(
            self.index, columns, self.start[:-1], mode="sum", per_sample_weights=value
        ).t()

    def transposed(self) -> "Columns":
        """The transposed matrix; derived, so that no checkpoint keeps it."""
        return Columns(self.key(), self.index, self.value, self.size, persistent=False)

    def largest_row_sum(self) -> float:
        """The largest sum of absolute values of a row; infinite where an entry is not finite."""
        sums = self.value.new_zeros(self.size).index_add(0, self.index, self.value.abs())
        return float(sums.max()) if bool(sums.isfinite().all()) else math.inf


def _measure_width(columns: Columns, _: Any) -> None:
    columns.width = int(columns.start.diff().max())


def _one_hot(target: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(len(target), size, dtype=dtype, device=target.device).scatter(1, target.unsqueeze(1), 1)


def _check_rows(columns: Columns) -> None:
    if not bool((columns.value.isfinite() & (columns.value >= 0)).all()):
        raise BadValue("the transition matrix holds an entry that is negative or not finite: they are probabilities.")
    value = columns.value.double()
    sums = value.new_zeros(columns.size).index_add(0, columns.index, value)
    row = int((sums - 1).abs().argmax())
    if abs(float(sums[row]) - 1) > 1e-4:
        raise BadValue(
            f"row {row} of the transition matrix sums to {float(sums[row]):.6g}, not to one: "
            "T[i, j] = p(noisy = j | clean = i) has one distribution per row."
        )


def _invert_groups(columns: Columns, groups: Tensor) -> Columns:
    """``T^-1``, block by block, all blocks of one size at a time."""
    sizes = groups.bincount()
    order = groups.argsort(stable=True)  # the classes, group by group
    first = nn.functional.pad(sizes.cumsum(0), (1, 0))[:-1]
    place = torch.empty_like(order)  # of each class within its group
    place[order] = torch.arange(len(order), device=order.device) - first.repeat_interleave(sizes)
    clean, noisy = columns.index, columns.key()
    number = torch.empty_like(sizes)  # of each group among those of its size
    found = []
    for size in sizes.unique().tolist():
        members = (sizes == size).nonzero().squeeze(1)
        number[members] = torch.arange(len(members), device=members.device)
        classes = order[first[members].unsqueeze(1) + torch.arange(size, device=members.device)]
        blocks = columns.value.new_zeros(len(members), size, size, dtype=torch.float64)
        here = sizes[groups[clean]] == size
        blocks[number[groups[clean[here]]], place[clean[here]], place[noisy[here]]] = columns.value[here].double()
        inverse, singular = torch.linalg.inv_ex(blocks)
        inverse[singular != 0] = torch.inf
        rows = classes.unsqueeze(2).expand_as(inverse)
        found.append((rows.flatten(), rows.transpose(1, 2).flatten(), inverse.flatten()))
    row, column, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Columns(row, column, value.to(columns.value.dtype), columns.size, persistent=False)
