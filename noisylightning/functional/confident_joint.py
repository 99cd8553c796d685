"""T from the confident joint of noisy labels and classes (Northcutt et al., JAIR 2021)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.probabilities import check_every_class, check_noisy_labels, check_probabilities

_ENTRIES = 2**18  # of a table are looked at at a time: they stay in the processor's cache


def confident_joint_transition(probs: Tensor, labels: Tensor) -> Tensor:
    r"""Estimate T by counting the samples that are confidently of a class.

    The threshold of class j is the mean of :math:`p_j` over the samples labelled j. A sample is confidently of the
    class for which it reaches the threshold, of several the most probable of these (Northcutt et al., JAIR 2021, eqs.
    1 and 2). The counts of (label, class) are scaled so that each label has as many as there are samples with it (eq.
    3); normalised over the labels of a class, they are T.

    cleanlab differs in three points. Of several classes it takes the most probable of *all* classes, which may not
    reach its threshold; it takes thresholds lower by 1e-6; and it puts a one on the diagonal where nothing was counted,
    and rounds the scaled counts to whole numbers.

    Args:
        probs: p(noisy | x) of samples that the network was trained without, shape ``(N, C)``, rows sum to one.
        labels: Noisy labels, integers of shape ``(N,)``.

    Returns:
        T-hat, ``(C, C)``, float32.

    Raises:
        TypeError: If the probabilities are not floating point or the labels not integers.
        ValueError: If they are none, a class has no sample, or no sample is confidently of a class.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
        >>> confident_joint_transition(probs, torch.tensor([0, 1, 1, 1]))
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    check_probabilities(probs)
    check_noisy_labels(labels, *probs.shape)
    class_counts = torch.bincount(labels.long(), minlength=probs.shape[1])
    sums = self_confidence(probs, labels)
    check_self_confidence(sums, class_counts)
    thresholds = confident_thresholds(sums, class_counts)
    return joint_transition(confident_counts(probs, labels, thresholds), class_counts, torch.float32)


def self_confidence(probs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum the probability of the label over the samples that carry it.

    Args:
        probs: p(noisy | x), shape ``(N, C)``.
        labels: Noisy labels, shape ``(N,)``.
        weights: How often each sample counts, integers of shape ``(N, B)``; once where it is left out.

    Returns:
        The sums as :func:`~noisylightning.functional.exact_sums.to_fixed` writes them, ``(C,)`` or ``(B, C)``.
    """
    size, columns = probs.shape[1], 1 if weights is None else weights.shape[1]
    sums = torch.zeros(size, columns, dtype=torch.long, device=probs.device)
    for rows in _parts(probs):
        own = to_fixed(probs[rows].gather(1, labels[rows].unsqueeze(1)))
        sums.index_add_(0, labels[rows], own if weights is None else own * weights[rows])
    return sums.squeeze(1) if weights is None else sums.t()


def confident_thresholds(sums: Tensor, class_counts: Tensor) -> Tensor:
    """Return the threshold of each class, the mean probability of a label over the samples that carry it.

    It is the mean less 2^-36, the unit that the sums were rounded to: so the most confident sample of a label always
    reaches it.

    Args:
        sums: What :func:`self_confidence` gives, shape ``(..., C)``.
        class_counts: How many samples carry each label, shape ``(..., C)``.

    Returns:
        float64, same shape; NaN, which nobody reaches, for a class without a sample.
    """
    return from_fixed(sums - class_counts) / class_counts


def check_self_confidence(sums: Tensor, class_counts: Tensor) -> None:
    """Raise where a threshold would be nothing: each class must have samples, and some probability on them.

    Args:
        sums: What :func:`self_confidence` gives, shape ``(..., C)``.
        class_counts: How many samples carry each label, shape ``(..., C)``.

    Raises:
        ValueError: If a class has no sample, or the network gives it no probability on the samples that carry it.
    """
    for counts in class_counts.reshape(-1, class_counts.shape[-1]):
        check_every_class(counts)
    nothing = (sums <= class_counts).nonzero()
    if len(nothing):
        raise BadValue(
            f"T cannot be estimated: the network gives class {int(nothing[0, -1])} no probability on the samples that"
            " carry its label; train for longer, or use AnchorEstimator."
        )


def confident_classes(probs: Tensor, thresholds: Tensor) -> Tensor:
    """Return the class that each sample is confidently of, -1 where there is none.

    Args:
        probs: p(noisy | x), shape ``(N, C)``.
        thresholds: Shape ``(C,)``.

    Returns:
        int64 of shape ``(N,)``; of equally probable classes the first.

    Example:
        >>> confident_classes(torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), torch.tensor([0.6, 0.3, 0.1]))
        tensor([1, 2])
    """
    bounds = thresholds.to(probs.dtype)  # rounding keeps the order: the most confident sample still reaches it
    largest, found = probs.max(dim=1)  # where that reaches its threshold, as mostly, no other has to be looked at
    rest = (~(largest >= bounds[found])).nonzero().squeeze(1)  # negated, so that NaN is not reached
    others = probs[rest]
    largest, second = torch.where(others >= bounds, others, -1).max(dim=1)
    found[rest] = second.masked_fill_(largest < 0, -1)
    return found


def confident_counts(
    probs: Tensor,
    labels: Tensor,
    thresholds: Tensor,
    weights: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Count the samples of each noisy label that are confidently of each class.

    Args:
        probs: p(noisy | x), shape ``(N, C)``.
        labels: Noisy labels, shape ``(N,)``.
        thresholds: Shape ``(C,)``.
        weights: How often each sample counts, integers of shape ``(N,)``; once where it is left out.
        before: Counts of other samples, contiguous, to which these are added in place.

    Returns:
        int64 of shape ``(C, C)``: row is the label, column the class.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
        >>> confident_counts(probs, torch.tensor([0, 1, 1]), torch.tensor([0.8, 0.6]))
        tensor([[1, 0],
                [0, 1]])
    """
    size = probs.shape[1]
    counts = torch.zeros(size, size, dtype=torch.long, device=probs.device) if before is None else before
    for rows in _parts(probs):
        classes = confident_classes(probs[rows], thresholds)
        sure = classes >= 0
        pairs = (labels[rows] * size + classes)[sure]
        counts.view(-1).index_add_(0, pairs, torch.ones_like(pairs) if weights is None else weights[rows][sure])
    return counts


def _parts(probs: Tensor) -> Iterator[slice]:
    size = max(1, _ENTRIES // probs.shape[1])
    return (slice(start, start + size) for start in range(0, len(probs), size))


def joint_transition(counts: Tensor, class_counts: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """T from the confident counts.

    The counts of each label are scaled to the number of samples that carry it (Northcutt et al. 2021, eq. 3), and
    normalised over the labels of each class; a few classes at a time, so that beside counts and T-hat no other table of
    their size is held.

    Args:
        counts: What :func:`confident_counts` gives, ``(..., C, C)``.
        class_counts: How many samples carry each label, ``(..., C)``.
        dtype: What T-hat is written in; it is computed in float64.

    Returns:
        T-hat, ``(..., C, C)``.

    Raises:
        ValueError: If no sample is confidently of a class.

    Example:
        >>> joint_transition(torch.tensor([[1, 0], [1, 3]]), torch.tensor([2, 8]))
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    check_confident(counts.sum(dim=-2))
    scale = (class_counts / counts.sum(dim=-1).double()).unsqueeze(-1)
    transition = torch.empty(counts.shape, dtype=dtype, device=counts.device)
    size = max(1, _ENTRIES // 4 // counts[..., 0].numel())  # of classes at a time
    for part, rows in zip(counts.split(size, dim=-1), transition.split(size, dim=-2), strict=True):
        joint = part * scale
        rows.copy_(joint.div_(joint.sum(dim=-2, keepdim=True)).transpose(-1, -2))
    return transition


def count_pairs(pairs: Tensor) -> Tensor:
    """Merge counts of (label, class) where most of the C^2 pairs do not occur.

    Args:
        pairs: Rows of ``label * C + class`` and how often, integers of shape ``(M, 2)``.

    Returns:
        The same with each pair once, in rising order.

    Example:
        >>> count_pairs(torch.tensor([[7, 1], [3, 2], [7, 4]]))
        tensor([[3, 2],
                [7, 5]])
    """
    keys, place = pairs[:, 0].unique(return_inverse=True)
    return torch.stack([keys, torch.zeros_like(keys).index_add(0, place, pairs[:, 1])], dim=1)


def sparse_joint_transition(pairs: Tensor, class_counts: Tensor, max_entries: int) -> tuple[Tensor, Tensor]:
    """T from confident counts as in :func:`joint_transition`, with few entries in each row.

    Of each row the largest entries are kept, of equals those of lower labels, and the diagonal before all others; they
    are divided by their sum. What they replace is told.

    Args:
        pairs: What :func:`count_pairs` gives.
        class_counts: How many samples carry each label, ``(C,)``, none of them 0.
        max_entries: Number of entries in a row, at most.

    Returns:
        T-hat, sparse and float32, ``(C, C)``; and the share of each row's mass that was cut, float64, ``(C,)``.

    Raises:
        ValueError: If no sample is confidently of a class, or no entry of a label's column would be kept.

    Example:
        >>> pairs = torch.tensor([[0, 7], [3, 1], [4, 5], [6, 2], [8, 4]])  # of C = 3 classes
        >>> transition, cut = sparse_joint_transition(pairs, torch.tensor([7, 6, 6]), max_entries=2)
        >>> transition.to_dense()
        tensor([[0.7778, 0.0000, 0.2222],
                [0.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
        >>> cut
        tensor([0.1000, 0.0000, 0.0000], dtype=torch.float64)
    """
    pairs, class_counts = pairs.cpu(), class_counts.cpu()  # a GPU's float sums have no order
    size = len(class_counts)
    labels, classes, counts = pairs[:, 0] // size, pairs[:, 0] % size, pairs[:, 1]
    check_confident(classes.bincount(minlength=size))
    of_label = torch.zeros_like(class_counts).index_add(0, labels, counts)
    joint = counts * (class_counts / of_label.double())[labels]
    values = joint / joint.new_zeros(size).index_add(0, classes, joint)[classes]
    order = values.argsort(descending=True, stable=True)
    order = order[(labels != classes)[order].int().argsort(stable=True)]
    order = order[classes[order].argsort(stable=True)]  # now row by row, the diagonal first, then by size
    lengths = classes.bincount(minlength=size)
    rank = torch.arange(len(order)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    kept = order[rank < max_entries].sort().values
    labels, classes, values = labels[kept], classes[kept], values[kept]
    empty = (labels.bincount(minlength=size) == 0).nonzero()
    if len(empty):
        raise BadValue(
            f"With {max_entries} entries in a row of T no class would give the label {int(empty[0])}, whose samples"
            " would have an infinite loss: raise max_entries."
        )
    sums = values.new_zeros(size).index_add(0, classes, values)
    indices = torch.stack([classes, labels])
    entries = (values / sums[classes]).float()
    transition = torch.sparse_coo_tensor(indices, entries, (size, size), check_invariants=True).coalesce()
    return transition, (1 - sums).clamp(min=0)


def check_confident(found: Tensor) -> None:
    """Raise unless some sample is confidently of each class; ``found`` counts them, ``(..., C)``."""
    missing = (found == 0).nonzero()
    if len(missing):
        raise BadValue(
            f"T cannot be estimated: no sample is confidently of class {int(missing[0, -1])}, whose row would be a"
            " guess; train for longer, add samples, or use AnchorEstimator."
        )
