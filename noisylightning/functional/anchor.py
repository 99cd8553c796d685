"""The anchor-point ("perfect example") estimate of T (Patrini et al., CVPR 2017, eqs. 12 and 13)."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.probabilities import check_every_class, check_noisy_labels, check_probabilities

Quantile = float | Literal["auto"] | None
"""What is left out as outliers: see :func:`anchor_transition`."""


def anchor_transition(probs: Tensor, labels: Tensor, *, quantile: Quantile = "auto") -> Tensor:
    r"""Estimate T from the examples that the network is surest of.

    For each class i the "perfect example" :math:`x^i = \arg\max_x p(\text{noisy} = i \mid x)` gives the row
    :math:`\hat T_{i \cdot} = p(\text{noisy} = \cdot \mid x^i)` (Patrini et al., CVPR 2017, eqs. 12 and 13).

    The single surest example is often an outlier; the paper's code therefore leaves out, class by class, all entries at
    or above the 97th percentile. A fixed percentile removes a whole class whose prior is below 3 %, so the default
    scales it: the quantile of class i is ``1 - 0.3 * prior_i``, with its share of the noisy labels as its prior. With
    ten balanced classes this is the paper's 0.97.

    Args:
        probs: Predicted noisy posterior p(noisy | x), shape ``(N, C)``, rows sum to one.
        labels: Noisy labels, integers of shape ``(N,)``.
        quantile: Entries of class i's column at or above this quantile (of all N, method "higher") are left out:
            ``"auto"``, a number in (0, 1), or ``None`` to take the maximum itself.

    Returns:
        T-hat, ``(C, C)``, rows sum to one.

    Raises:
        TypeError: If the probabilities are not floating point or the labels not integers.
        ValueError: If an argument is none of the above, if a class has no noisy label, or if no entry of a column lies
            below its quantile.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])
        >>> anchor_transition(probs, torch.tensor([0, 1, 1]), quantile=None)
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """
    check_quantile(quantile)
    check_probabilities(probs)
    check_noisy_labels(labels, *probs.shape)
    probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
    class_counts = torch.bincount(labels.long(), minlength=probs.shape[1])
    check_every_class(class_counts)
    return anchors(probs, class_counts, quantile)


def check_quantile(quantile: Quantile) -> None:
    """Raise unless it is ``"auto"``, None or a number in (0, 1)."""
    valid = quantile is None or quantile == "auto" or (not isinstance(quantile, str) and 0 < quantile < 1)
    if not valid:
        raise BadValue(f"quantile must be 'auto', None or a number in (0, 1), got {quantile!r}.")


def anchors(probs: Tensor, class_counts: Tensor, quantile: Quantile) -> Tensor:
    """T-hat of :func:`anchor_transition` from what it has checked; of the labels only their numbers count.

    Args:
        probs: As there, shape ``(N, C)``.
        class_counts: How many examples carry each label, shape ``(C,)``, none of them 0.
        quantile: As there.

    Returns:
        T-hat, ``(C, C)``.
    """
    rows = surest_rows(probs) if quantile is None else _rows_below_quantile(probs, class_counts, quantile)
    return normalized_rows(rows)


def normalized_rows(rows: Tensor) -> Tensor:
    """Divide rows, ``(..., C)``, by their sums."""
    wide = rows.double()
    return (wide / wide.sum(dim=-1, keepdim=True)).to(rows.dtype)


def surest_rows(probs: Tensor, scores: Tensor | None = None) -> Tensor:
    """For each class the row of ``(N, C)`` that is surest of it; of equals the lexicographically largest.

    The surest rows of the surest rows of the parts are those of the whole.

    Args:
        probs: The rows, shape ``(N, C)``, N at least 1.
        scores: What is looked at in their place to say how sure they are, same shape.

    Returns:
        Shape ``(C, C)``.

    Example:
        >>> surest_rows(torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]]))
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]])
    """
    scores = probs if scores is None else scores
    best, where = scores.max(dim=0)
    rows = probs[where]
    for i in ((scores == best).sum(dim=0) > 1).nonzero().flatten().tolist():
        rows[i] = lexicographic_max(probs[scores[:, i] == best[i]])
    return rows


def lexicographic_max(rows: Tensor) -> Tensor:
    """Return the lexicographically largest row of ``(N, C)``: a tie-break that no order of the samples changes.

    Example:
        >>> lexicographic_max(torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 9.0]]))
        tensor([1., 3.])
    """
    for column in range(rows.shape[1]):
        if len(rows) == 1:
            break
        rows = rows[rows[:, column] == rows[:, column].max()]
    return rows[0]


def _rows_below_quantile(probs: Tensor, class_counts: Tensor, quantile: float | Literal["auto"]) -> Tensor:
    ranks = quantile_ranks(class_counts, quantile).tolist()
    rows = []
    for i, rank in enumerate(ranks):
        column = probs[:, i].contiguous()
        # torch's kthvalue takes ten times as long, and refuses to be deterministic on a GPU.
        threshold = np.partition(column.cpu().numpy(), rank)[rank].item()
        best = torch.where(column < threshold, column, -1).max()
        if best < 0:
            raise nothing_below(i, len(probs))
        rows.append(lexicographic_max(probs[column == best]))
    return torch.stack(rows)


def quantile_ranks(class_counts: Tensor, quantile: float | Literal["auto"]) -> Tensor:
    """Return the place of each class's quantile in its column in rising order, from 0.

    Args:
        class_counts: How many examples carry each label, shape ``(C,)``.
        quantile: As in :func:`anchor_transition`.

    Returns:
        int64 of shape ``(C,)``, on the CPU.

    Example:
        >>> quantile_ranks(torch.tensor([60, 41]), "auto")
        tensor([83, 88])
    """
    total = int(class_counts.sum())
    shares = [1 - 0.3 * count / total if quantile == "auto" else quantile for count in class_counts.tolist()]
    return torch.tensor([math.ceil(q * (total - 1)) for q in shares])


def nothing_below(i: int, total: int) -> BadValue:
    """Make the error about a class of whose column no entry lies below its quantile."""
    return BadValue(
        f"No prediction for class {i} lies below its quantile of {total} examples: add examples, or pass a lower"
        " quantile or quantile=None."
    )


def replicated_anchors(probs: Tensor, weights: Tensor, class_counts: Tensor, quantile: Quantile) -> Tensor:
    """T-hat of each bootstrap replicate: what :func:`anchors` gives with each sample as often as its weight says.

    Args:
        probs: As there, shape ``(N, C)``.
        weights: How often each sample is in each replicate, integers of shape ``(N, B)``.
        class_counts: How many of a replicate's samples carry each label, shape ``(B, C)``.
        quantile: As there.

    Returns:
        Shape ``(B, C, C)``.

    Raises:
        ValueError: If no entry of a column lies below its quantile in a replicate.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
        >>> replicated_anchors(probs, torch.tensor([[0], [2], [1]]), torch.tensor([[2, 1]]), None)
        tensor([[[0.7000, 0.3000],
                 [0.4000, 0.6000]]])
    """
    total, columns = len(probs), []
    ranks = [quantile_ranks(counts, quantile) for counts in class_counts] if quantile is not None else []
    for i in range(probs.shape[1]):
        column, order = probs[:, i].sort(descending=True)
        seen = weights[order].cumsum(dim=0).t().contiguous()  # (B, N): entries of the replicate down to this one
        if quantile is None:
            above = seen.new_zeros(len(seen), 1)
        else:
            rank = torch.stack([found[i] for found in ranks]).to(seen.device).unsqueeze(1)
            threshold = torch.searchsorted(seen, seen[:, -1:] - 1 - rank, right=True)
            start = torch.searchsorted(-column, -column[threshold], right=True)  # first entry below
            above = seen.gather(1, start - 1)
        place = torch.searchsorted(seen, above, right=True).squeeze(1)
        if bool((place == total).any()):
            raise BadValue(
                f"There are no standard errors: no prediction for class {i} lies below its quantile in a bootstrap"
                " replicate; add samples, or pass replicates=0."
            )
        rows = probs[order[place]]
        end = torch.searchsorted(-column, -column[place], right=True)
        for b in (end - place > 1).nonzero().flatten().tolist():
            tied = order[int(place[b]) : int(end[b])]
            rows[b] = lexicographic_max(probs[tied[weights[tied, b] > 0]])
        columns.append(rows)
    return normalized_rows(torch.stack(columns, dim=1))
