"""The anchor estimate in two passes over the predictions, without keeping them; the same bits as in one.

The first pass counts, class by class, how often the probabilities lie in each of a few thousand bins. So it is known in
which bin the quantile lies, and the second pass keeps the rows in that bin alone, and the surest row below it.
"""

import torch
from torch import Tensor

from noisylightning.functional.anchor import lexicographic_max, nothing_below, surest_rows

_STEPS = 5  # bins an octave, as a power of two
_LOWEST = (127 - 40) << _STEPS  # 2^-40, as the leading bits of a float32
_HALF = (126 << _STEPS) - _LOWEST
BINS = 2 * _HALF + 1
"""Number of bins: 32 an octave of p up to 1/2, 32 an octave of 1 - p above."""


def bins(probs: Tensor) -> Tensor:
    """Return the bin of each probability: a larger probability is in no lower bin.

    Args:
        probs: Numbers in [0, 1], any shape.

    Returns:
        int32 in [0, BINS), same shape.

    Example:
        >>> bins(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]))
        tensor([   0, 1171, 1248, 1325, 2496], dtype=torch.int32)
    """
    narrow = probs.float()  # rounding keeps the order
    low = narrow <= 0.5
    # The leading bits of a positive float rise with it, evenly in its logarithm.
    leading = torch.where(low, narrow, 1 - narrow).view(torch.int32).bitwise_right_shift_(23 - _STEPS)
    place = leading.sub_(_LOWEST).clamp_(min=0)
    return torch.where(low, place, 2 * _HALF - place)


def count_bins(probs: Tensor) -> Tensor:
    """Return how many entries of each column lie in each bin: from ``(N, C)`` to ``(C, BINS)``."""
    columns = probs.shape[1]
    places = bins(probs) + torch.arange(columns, device=probs.device) * BINS
    return places.flatten().bincount(minlength=columns * BINS).view(columns, BINS)


def find_rank(histogram: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which bin the entry of each rank lies, and its rank among those in the bin.

    Args:
        histogram: What :func:`count_bins` gives, summed over all samples, shape ``(C, BINS)``.
        ranks: Places in rising order, from 0, shape ``(C,)``.

    Returns:
        Two of shape ``(C,)``.

    Example:
        >>> find_rank(torch.tensor([[3, 0, 4]]), torch.tensor([5]))
        (tensor([2], dtype=torch.int32), tensor([2]))
    """
    ends = histogram.cumsum(dim=1)
    found = torch.searchsorted(ends, ranks.unsqueeze(1), right=True)
    before = (ends - histogram).gather(1, found)
    return found.squeeze(1).int(), ranks - before.squeeze(1)


def rows_within(probs: Tensor, places: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows that have their class's entry in its bin.

    Args:
        probs: Shape ``(N, C)``.
        places: Their :func:`bins`, same shape.
        chosen: The bin of each class, shape ``(C,)``.

    Returns:
        The class of each such row ``(M,)``, how often its entry occurs ``(M,)`` and the row ``(M, C)``; of rows that
        agree in the entry, the lexicographically largest.
    """
    sample, classes = (places == chosen).nonzero().unbind(dim=1)
    return merge_rows(classes, torch.ones_like(classes), probs, sample)


def merge_rows(
    classes: Tensor, counts: Tensor, rows: Tensor, sample: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge what several calls of :func:`rows_within` gave, in any order.

    Args:
        classes: The class of each row, shape ``(M,)``.
        counts: How often its entry occurs, shape ``(M,)``.
        rows: The rows ``(M, C)``.
        sample: Which row of ``rows`` each is, shape ``(M,)``; by default they are all, in their order.

    Returns:
        As there.
    """
    sample = torch.arange(len(classes), device=classes.device) if sample is None else sample
    entries = rows[sample, classes]
    order = entries.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    classes, counts, sample, entries = classes[order], counts[order], sample[order], entries[order]
    new = torch.ones_like(classes, dtype=torch.bool)
    new[1:] = (classes.diff() != 0) | (entries.diff() != 0)
    first = new.nonzero().squeeze(1)
    merged = torch.zeros_like(first).index_add(0, new.cumsum(0) - 1, counts)
    found = rows[sample[first]]
    lengths = torch.cat([first, first.new_tensor([len(classes)])]).diff()
    for group in (lengths > 1).nonzero().flatten().tolist():
        start, length = int(first[group]), int(lengths[group])
        found[group] = lexicographic_max(rows[sample[start : start + length]])
    return classes[first], merged, found


def surest_below(probs: Tensor, places: Tensor, chosen: Tensor) -> Tensor:
    """Return for each class the row that is surest of it below its bin; of equals the lexicographically largest.

    Args:
        probs: Shape ``(N, C)``.
        places: Their :func:`bins`, same shape.
        chosen: The bin of each class, shape ``(C,)``.

    Returns:
        Shape ``(C, C)``; -1 where there is none.
    """
    below = places < chosen
    rows = surest_rows(probs, torch.where(below, probs, -1))
    return torch.where(below.any(dim=0).unsqueeze(1), rows, -1)


def surer(first: Tensor, second: Tensor) -> Tensor:
    """Of two candidates for each class, both ``(C, C)``, return the surer; of equals the lexicographically larger."""
    mine, other = first.diagonal(), second.diagonal()
    rows = torch.where((other > mine).unsqueeze(1), second, first)
    for i in ((other == mine) & (first != second).any(dim=1)).nonzero().flatten().tolist():
        rows[i] = lexicographic_max(torch.stack([first[i], second[i]]))
    return rows


def rows_below_rank(kept: tuple[Tensor, Tensor, Tensor], below: Tensor, places: Tensor, total: int) -> Tensor:
    """Return for each class the surest row below the entry of a rank.

    Args:
        kept: What :func:`merge_rows` gives for all samples.
        below: What :func:`surest_below` gives, the surer of all samples.
        places: The rank within the bin, as :func:`find_rank` gives it, shape ``(C,)``.
        total: The number of samples.

    Returns:
        Shape ``(C, C)``.

    Raises:
        ValueError: If there is no row below.
    """
    classes, counts, rows = kept
    found = below.clone()
    ends = classes.bincount(minlength=len(below)).cumsum(0).tolist()
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        # Entries rise; the threshold is the first that reaches past the place, and the one before it is wanted.
        threshold = int(torch.searchsorted(counts[start:end].cumsum(0), places[i], right=True))
        if threshold > 0:
            found[i] = rows[start + threshold - 1]
        elif below[i, i] < 0:
            raise nothing_below(i, total)
    return found
