"""Which row of T belongs to which class: what noisy labels say about it, and what only a trusted label can."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, nnls  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.probabilities import check_labels
from noisylightning.transition import validate_transition

_TIE = 1e-9  # scores closer than this are ties, in which a row stays where it is


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
    validate_transition(transition)
    rows = _assign(_log_scores(transition).T, _stay(len(transition)))
    return torch.from_numpy(rows).to(transition.device)


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
    scores = _log_scores(transition[name_rows(transition)])
    # What it costs row i to take the name j: an order of the rows is a set of cycles, none of which costs less than 0.
    costs = np.diag(scores)[:, None] - scores + 2 * _TIE
    np.fill_diagonal(costs, np.inf)
    most = -np.log(threshold)
    gains = np.maximum(-costs.min(axis=1), 0).sum()  # no more than this can other edges of a cycle win back
    costs[costs > most + gains] = np.inf
    _, part = connected_components(np.isfinite(costs), connection="strong")
    costs[part[:, None] != part] = np.inf
    kept = np.flatnonzero(np.isfinite(costs).any(axis=1))
    costs = costs[np.ix_(kept, kept)]
    cheap = costs + _shortest(costs).T <= most  # the cheapest cycle through each edge
    _, group = connected_components(cheap, directed=False)
    groups = [tuple(kept[group == number].tolist()) for number in np.unique(group)]
    return sorted(names for names in groups if len(names) > 1)


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


def decide_names(transition: Tensor, log_p_clean: Tensor, clean_labels: Tensor) -> Tensor:
    """Name the rows of T, those that are :func:`exchangeable` by trusted labels.

    Args:
        transition: Row-stochastic, shape ``(C, C)``.
        log_p_clean: Log-probabilities of the classes of trusted samples, whose class i is row i of ``transition``, from
            a network trained with it: shape ``(M, C)``.
        clean_labels: Their trusted labels, integers of shape ``(M,)``.

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
    for names in exchangeable(transition):
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
    shares, _ = nnls(transition.detach().cpu().double().numpy().T, (counts / counts.sum()).numpy())
    return torch.from_numpy(shares / shares.sum())


def names_warning(transition: Tensor, priors: Tensor, class_names: Sequence[str] | None = None) -> str | None:
    """Say in a sentence which classes noisy labels cannot tell apart, what hangs on it, and what decides it.

    Args:
        transition: T-hat, row-stochastic, shape ``(C, C)``.
        priors: Share of each class among the samples, shape ``(C,)``; see :func:`clean_priors`.
        class_names: The C names; numbers where they are left out.

    Returns:
        The sentence; None if all classes can be told apart.

    Raises:
        TypeError: If T is not floating.
        ValueError: If T is not row-stochastic, or the priors are not C.

    Example:
        >>> from noisylightning.transition import from_flips
        >>> priors = torch.tensor([0.2, 0.3, 0.5])
        >>> names_warning(from_flips(3, {0: 1, 1: 0}, rate=0.6), priors, class_names=["cat", "dog", "fox"])
        'Noisy labels cannot tell apart cat and dog, on which up to 50.0 points of accuracy hang: their rows ...
    """
    if priors.shape != transition.shape[:1]:
        raise BadValue(f"T of shape {tuple(transition.shape)} needs a prior a class, got {tuple(priors.shape)}.")
    groups = exchangeable(transition)
    if not groups:
        return None
    told = [_enumerate([class_names[i] if class_names else str(i) for i in names]) for names in groups]
    points = 100 * float(priors.double()[sorted(sum(groups, ()))].sum())
    return (
        f"Noisy labels cannot tell apart {'; nor '.join(told)}, on which up to {points:.1f} points of accuracy hang:"
        " their rows of T-hat may have to be exchanged; one trusted label of one of them decides it."
    )


def _enumerate(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _log_scores(transition: Tensor) -> NDArray[np.float64]:
    """Return log T; where T is zero a number so low that one zero more outweighs all else."""
    values = transition.detach().cpu().double().numpy()
    positive = values > 0
    logs = np.log(values, where=positive, out=np.zeros_like(values))
    lowest = logs.min()  # not above 0, as no probability is above one
    return np.where(positive, logs, (len(logs) + 1) * (lowest - 1))


def _stay(size: int) -> NDArray[np.bool_]:
    return np.eye(size, dtype=bool)


def _assign(scores: NDArray[np.float64], stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the row for each name so that the sum of ``scores[name, row]`` is largest; in a tie those that stay."""
    _, rows = linear_sum_assignment(scores + _TIE * stays, maximize=True)
    return rows.astype(np.int64)


def _shortest(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the costs of the cheapest paths (Floyd 1962); no cycle may cost less than 0."""
    paths = costs.copy()
    for k in range(len(paths)):
        np.minimum(paths, paths[:, k, None] + paths[k], out=paths)
    return paths
