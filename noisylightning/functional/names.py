"""Which row of T belongs to which class: what noisy labels say about it, and what only a trusted label can."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, lsq_linear, nnls  # type: ignore[import-untyped]
from scipy.sparse import coo_matrix, csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import (  # type: ignore[import-untyped]
    connected_components,
    dijkstra,
    min_weight_full_bipartite_matching,
)
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.probabilities import check_labels
from noisylightning.transition import SparseTransition, validate_transition

_TIE = 1e-9  # scores closer than this are ties, in which a row stays where it is
_SOURCES = 1000  # of cheapest ways that are looked for at a time


def name_rows(transition: Tensor) -> Tensor:
    r"""Name the rows of T: the permutation that maximises the product of the diagonal.

    A method that sees noisy labels alone finds T up to a permutation of its rows, since the classes of
    :math:`p(y) = \sum_i p(i) T_{iy}` may be summed in any order. Where more labels of each class are right than are any
    one wrong class's, the largest product of the diagonal is the right order; see :func:`exchangeable` for the rest.

    Args:
        transition: Row-stochastic, shape ``(C, C)``, its rows in any order.

    Returns:
        The permutation, int64 of shape ``(C,)``: ``transition[name_rows(transition)]`` has its rows in order. A product
        of zero loses to any other; of two products of zero the one with fewer zeros is larger. In a tie rows stay.

    Raises:
        TypeError: If T is not floating.
        ValueError: If T is not row-stochastic.

    Example:
        >>> name_rows(torch.tensor([[0.1, 0.9, 0.0], [0.2, 0.2, 0.6], [0.7, 0.0, 0.3]]))
        tensor([2, 0, 1])
    """
    size = len(transition)
    if transition.layout != torch.strided:
        SparseTransition(transition)  # checks it
    else:
        validate_transition(transition)
    (rows, labels), logs = _logs(transition)
    zero = _zero(logs, size)
    if transition.layout == torch.strided:
        scores = np.full((size, size), zero)
        scores[labels, rows] = logs
        order = _assign(scores, _stay(size))
    else:
        own = rows == labels
        diagonal = np.full(size, zero)
        diagonal[rows[own]] = logs[own]
        every = np.arange(size)
        entries = np.concatenate([diagonal + _TIE, logs[~own]])
        places = np.concatenate([every, labels[~own]]), np.concatenate([every, rows[~own]])
        # Weights must not be zero, which would be no entries; one offset for all changes nothing.
        graph = csr_matrix((entries - 1, places), shape=(size, size))
        _, order = min_weight_full_bipartite_matching(graph, maximize=True)
        order = order.astype(np.int64)
    return torch.from_numpy(order).to(transition.device)


def exchangeable(transition: Tensor, threshold: float = 0.3) -> list[tuple[int, ...]]:
    r"""Find the classes that noisy labels alone cannot tell apart.

    Two classes are in one group if an order of the rows other than :func:`name_rows`'s exchanges them, alone or in a
    cycle with others, and the product of its diagonal is at least ``threshold`` times the largest. For a pair the ratio
    is :math:`T_{ij} T_{ji} / (T_{ii} T_{jj})`: 0.29 if each gives 35 % of its labels to the other, 0.44 at 40 % and at
    60 %.

    Args:
        transition: Row-stochastic, shape ``(C, C)``, its rows in any order.
        threshold: The least ratio, in (0, 1).

    Returns:
        The groups, each sorted, in order of their first class.

    Raises:
        TypeError: If T is not floating.
        ValueError: If T is not row-stochastic, or the threshold outside (0, 1).

    Example:
        >>> from noisylightning.transition import mnist_asymmetric
        >>> exchangeable(mnist_asymmetric(0.6)), exchangeable(mnist_asymmetric(0.2))
        ([(5, 6)], [])
    """
    if not 0 < threshold < 1:
        raise BadValue(f"threshold is a ratio of products of diagonals in (0, 1), got {threshold}.")
    order = name_rows(transition)
    name = order.argsort().cpu().numpy()
    (rows, labels), logs = _logs(transition)
    size = len(name)
    diagonal = np.full(size, _zero(logs, size))
    own = name[rows] == labels
    diagonal[labels[own]] = logs[own]
    # What it costs a row to take a name: an order of the rows is a set of cycles, none of which costs less than 0.
    start, end = name[rows[~own]], labels[~own]
    costs = diagonal[start] - logs[~own] + 2 * _TIE
    costs = costs + _potential(start, end, costs, size)
    most = -np.log(threshold)
    near = costs <= most  # no cycle costs less than one of its edges
    start, end, costs = start[near], end[near], costs[near]
    cheap = costs + _back(start, end, costs, size, most) <= most  # the cheapest cycle through each edge
    edges = coo_matrix((np.ones(cheap.sum()), (start[cheap], end[cheap])), shape=(size, size))
    _, group = connected_components(edges, directed=False)
    members = np.argsort(group, kind="stable")
    groups = np.split(members, np.flatnonzero(np.diff(group[members])) + 1)
    return sorted(tuple(names.tolist()) for names in groups if len(names) > 1)


def same_up_to_names(estimate: Tensor, other: Tensor, tolerance: float) -> Tensor | None:
    """Compare two T-hats whose rows may be in different orders.

    Args:
        estimate: Row-stochastic, shape ``(C, C)``.
        other: Row-stochastic, shape ``(C, C)``.
        tolerance: The largest relative L1 distance, the mean over rows of the sum of the absolute differences.

    Returns:
        The permutation, int64 of shape ``(C,)``, for which ``other[permutation]`` is nearest to ``estimate``; None if
        even that is farther away than the tolerance.

    Raises:
        TypeError: If one of them is not floating.
        ValueError: If one of them is not row-stochastic, or they are of different sizes.

    Example:
        >>> estimate = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
        >>> same_up_to_names(estimate, torch.tensor([[0.4, 0.6], [0.75, 0.25]]), tolerance=0.1)
        tensor([1, 0])
        >>> same_up_to_names(estimate, torch.eye(2), tolerance=0.1)
    """
    validate_transition(estimate)
    validate_transition(other, len(estimate))
    distances = torch.cdist(estimate.cpu().double(), other.cpu().double(), p=1).numpy()
    rows = _assign(-distances, _stay(len(estimate)))
    if distances[np.arange(len(rows)), rows].mean() > tolerance:
        return None
    return torch.from_numpy(rows).to(other.device)


def decide_names(transition: Tensor, log_p_clean: Tensor, clean_labels: Tensor, threshold: float = 0.3) -> Tensor:
    """Name the rows of T, those that are :func:`exchangeable` by trusted labels.

    Args:
        transition: Row-stochastic, shape ``(C, C)``.
        log_p_clean: Log-probabilities of the classes of trusted samples, whose class i is row i of ``transition``, from
            a network trained with it: shape ``(M, C)``.
        clean_labels: Their trusted labels, integers of shape ``(M,)``.
        threshold: As in :func:`exchangeable`.

    Returns:
        The permutation, int64 of shape ``(C,)``, for T's rows (``transition[permutation]``) and for the network's
        outputs (``log_p_clean[:, permutation]``): that of :func:`name_rows`, but within each exchangeable group the one
        under which the trusted labels are most likely. Rows that they do not decide on stay.

    Raises:
        TypeError: If T is not floating or the labels not integers.
        ValueError: If T is not row-stochastic, shapes do not go together, or a label is no class.

    Example:
        >>> from noisylightning.transition import from_flips
        >>> exchanged = from_flips(3, {0: 1, 1: 0}, rate=0.6)[[1, 0, 2]]
        >>> log_p = torch.tensor([[0.1, 0.8, 0.1]]).log()  # of a sample of class 0
        >>> decide_names(exchanged, log_p, torch.tensor([0]))
        tensor([1, 0, 2])
    """
    permutation = name_rows(transition)
    num_classes = len(transition)
    check_labels(clean_labels, num_classes, "trusted labels")
    if log_p_clean.shape != (*clean_labels.shape, num_classes):
        raise BadValue(
            f"{num_classes} classes and trusted labels of shape {tuple(clean_labels.shape)} need log-probabilities of"
            f" shape (M, {num_classes}), got {tuple(log_p_clean.shape)}: pass a row a label."
        )
    floor = torch.finfo(torch.float32).min / max(len(clean_labels), 1)  # so that log 0 can be summed and compared
    rows = log_p_clean.double().clamp_min(floor)
    likelihood = rows.new_zeros(num_classes, num_classes).index_add(0, clean_labels.to(rows.device).long(), rows)
    for names in exchangeable(transition, threshold):
        group = torch.tensor(names, device=permutation.device)
        owners = permutation[group]
        scores = likelihood[group][:, owners].cpu().numpy()
        stays = (group[:, None] == owners).cpu().numpy()
        permutation[group] = owners[torch.from_numpy(_assign(scores, stays)).to(owners.device)]
    return permutation


def clean_priors(transition: Tensor, noisy_counts: Tensor) -> Tensor:
    r"""Estimate the share of each class from how often each label is seen, :math:`q = p T`, by least squares.

    Args:
        transition: Row-stochastic, shape ``(C, C)``.
        noisy_counts: How many samples carry each label, shape ``(C,)``, or their shares.

    Returns:
        The shares p, none negative and summing to one, float64 of shape ``(C,)``. Classes whose rows are alike may
        divide theirs among them in any way.

    Raises:
        ValueError: If the counts are not C, or all zero.

    Example:
        >>> clean_priors(torch.tensor([[0.9, 0.1], [0.0, 1.0]]), torch.tensor([45, 55]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    counts = noisy_counts.detach().cpu().double()
    if counts.shape != transition.shape[:1] or not counts.sum() > 0:
        raise BadValue(
            f"T of shape {tuple(transition.shape)} needs a count a label, some above 0, got shape"
            f" {tuple(counts.shape)} and the sum {float(counts.sum()):g}."
        )
    labels = (counts / counts.sum()).numpy()
    if transition.layout == torch.strided:
        shares, _ = nnls(transition.detach().cpu().double().numpy().T, labels)
    else:
        entries = transition.detach().cpu().double().to_sparse_coo().coalesce()
        matrix = csr_matrix((entries.values().numpy(), entries.indices().numpy()), shape=transition.shape)
        shares = lsq_linear(matrix.T, labels, bounds=(0, np.inf), lsmr_tol="auto").x
    return torch.from_numpy(shares / shares.sum())


def names_warning(transition: Tensor, noisy_counts: Tensor, class_names: Sequence[str] | None = None) -> str | None:
    """Say in a sentence which classes noisy labels cannot tell apart, what hangs on it, and what decides it.

    Args:
        transition: T-hat, row-stochastic, shape ``(C, C)``.
        noisy_counts: How many samples carry each label, shape ``(C,)``, or their shares; see :func:`clean_priors`.
        class_names: The C names; numbers where they are left out.

    Returns:
        The sentence; None if all classes can be told apart.

    Raises:
        TypeError: If T is not floating.
        ValueError: If T is not row-stochastic, or the counts are not C.

    Example:
        >>> from noisylightning.transition import from_flips
        >>> counts = torch.tensor([22, 28, 50])
        >>> names_warning(from_flips(3, {0: 1, 1: 0}, rate=0.6), counts, class_names=["cat", "dog", "fox"])
        'Noisy labels cannot tell apart cat and dog, on which up to 50.0 points of accuracy hang: their rows ...
    """
    groups = exchangeable(transition)
    if not groups:
        return None
    told = [_enumerate([class_names[i] if class_names else str(i) for i in names]) for names in groups]
    points = 100 * float(clean_priors(transition, noisy_counts)[sorted(sum(groups, ()))].sum())
    return (
        f"Noisy labels cannot tell apart {'; nor '.join(told)}, on which up to {points:.1f} points of accuracy hang:"
        " their rows of T-hat may have to be exchanged; one trusted label of one of them decides it."
    )


def _enumerate(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _logs(transition: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return where T is not zero, ``(2, entries)``, and its logarithms there."""
    entries = transition.detach().cpu().double().to_sparse_coo().coalesce()
    values = entries.values().numpy()
    positive = values > 0
    return entries.indices().numpy()[:, positive], np.log(values[positive])


def _zero(logs: NDArray[np.float64], size: int) -> float:
    """Return a number for log 0, so low that one zero more on a diagonal outweighs all else."""
    return (size + 1) * (float(logs.min()) - 1)


def _potential(
    start: NDArray[np.int64], end: NDArray[np.int64], costs: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """Return what leaves no edge below zero when it is added, and cycles as they are (Johnson 1977)."""
    height, before = np.zeros(size), np.full(size, np.inf)
    while (height < before).any():
        before = height.copy()
        np.minimum.at(height, end, before[start] + costs)
    change: NDArray[np.float64] = np.maximum(height[start] - height[end], -costs)  # up to rounding the first
    return change


def _back(
    start: NDArray[np.int64], end: NDArray[np.int64], costs: NDArray[np.float64], size: int, most: float
) -> NDArray[np.float64]:
    """Return what the cheapest way back from the end of each edge costs; infinity if it is more than ``most``."""
    graph = csr_matrix((np.maximum(costs, np.finfo(float).tiny), (start, end)), shape=(size, size))
    back = np.empty_like(costs)
    for first in range(0, size, _SOURCES):
        here = (end >= first) & (end < first + _SOURCES)
        sources = np.unique(end[here])
        if len(sources):
            ways = dijkstra(graph, indices=sources, limit=most)
            back[here] = ways[np.searchsorted(sources, end[here]), start[here]]
    return back


def _stay(size: int) -> NDArray[np.bool_]:
    return np.eye(size, dtype=bool)


def _assign(scores: NDArray[np.float64], stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the row for each name so that the sum of ``scores[name, row]`` is largest; in a tie those that stay."""
    _, rows = linear_sum_assignment(scores + _TIE * stays, maximize=True)
    return rows.astype(np.int64)
