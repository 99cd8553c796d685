"""Parts of the features, and a T for each of them (Xia et al., NeurIPS 2020)."""

import warnings

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.probabilities import check_every_class, check_noisy_labels, check_probabilities
from noisylightning.transition.simplex import project_to_simplex

_STEPS, _TOLERANCE = 20_000, 1e-6


def part_codes(features: Tensor, num_parts: int = 10, *, seed: int = 0) -> Tensor:
    """Say of each sample how much of each part its features are made of.

    The parts are found by non-negative matrix factorization, ``features = h W``, the rows of W with sum one; then each
    code is divided by its sum. A sample whose features are all zero has as much of each part.

    Args:
        features: Not negative, shape ``(N, D)``.
        num_parts: The number of parts R, at most N and D.
        seed: Seed of the factorization.

    Returns:
        The codes h, float64 of shape ``(N, R)``, not negative, rows sum to one.

    Raises:
        ValueError: If features are negative, not finite or all alike, there are too many parts, or the factorization
            does not converge.

    Example:
        >>> part_codes(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.5, 0.5, 1.0]]), num_parts=2).round(decimals=2)
        tensor([[0.0000, 1.0000],
                [1.0000, 0.0000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    from sklearn.decomposition import NMF  # here: it takes longer to import than all of this package
    from sklearn.exceptions import ConvergenceWarning

    if not bool(features.isfinite().all()):
        raise BadValue("features must be finite, but a row holds NaN or infinity: the network has diverged.")
    smallest = float(features.min()) if features.numel() else 0.0
    if smallest < 0:
        raise BadValue(
            f"Parts are found in features that are not negative, got {smallest:.4g}: name a layer that reads what comes"
            " out of a ReLU (feature_layer)."
        )
    if not 1 <= num_parts <= min(features.shape):
        raise BadValue(
            f"num_parts must be from 1 to {min(features.shape)}, as many as there are features and samples at most,"
            f" got {num_parts}."
        )
    if bool((features == features[:1]).all()):
        raise BadValue(
            "The features are the same for every sample, so that no parts can be told apart: train for longer."
        )
    factorization = NMF(num_parts, init="nndsvda", random_state=seed, max_iter=1000, tol=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        codes = torch.from_numpy(factorization.fit_transform(features.double().cpu().numpy()))
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        raise BadValue(f"The factorization into {num_parts} parts does not converge: lower num_parts.")
    codes = codes * torch.from_numpy(factorization.components_).sum(dim=1)
    total = codes.sum(dim=1, keepdim=True)
    return torch.where(total > 0, codes / total.clamp(min=torch.finfo(codes.dtype).tiny), 1 / num_parts)


def part_transitions(probs: Tensor, labels: Tensor, codes: Tensor, *, anchors: int = 20, ridge: float = 0.01) -> Tensor:
    r"""Find the T of each part, by which the surest samples of each class have the rows that the network predicts.

    Row i of every :math:`P_r` minimises :math:`\sum_x \| p(\text{noisy} | x) - \sum_r h_r(x) P_{r, i} \|^2` over the
    anchors x of class i, each row a distribution, and ``ridge * anchors`` times the squares of their distances from
    the anchors' mean: where the anchors say nothing of a part, as many do of the parts of other classes, its T has that
    row. Anchors are the ``anchors`` samples with the largest
    p(noisy = i | x), after those that are left out as outliers, as many as 0.3 times the labels i (see
    :func:`~noisylightning.functional.anchor_transition`).

    Args:
        probs: Predicted noisy posterior p(noisy | x), shape ``(N, C)``, rows sum to one.
        labels: Noisy labels, integers of shape ``(N,)``.
        codes: What :func:`part_codes` gives, shape ``(N, R)``.
        anchors: Anchors of each class, at least 1.
        ridge: What the distance from the mean counts, not negative.

    Returns:
        float64 of shape ``(R, C, C)``, each row-stochastic.

    Raises:
        TypeError: If the probabilities are not floating point or the labels not integers.
        ValueError: If an argument is none of the above, a class has no noisy label, there are too few samples, or the
            minimum is not found.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
        >>> codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> part_transitions(probs, torch.tensor([0, 0, 1, 1]), codes, anchors=2, ridge=0)
        tensor([[[0.9000, 0.1000],
                 [0.2000, 0.8000]],
        <BLANKLINE>
                [[0.7000, 0.3000],
                 [0.4000, 0.6000]]], dtype=torch.float64)
    """
    check_probabilities(probs)
    check_noisy_labels(labels, *probs.shape)
    counts = torch.bincount(labels.long(), minlength=probs.shape[1])
    check_every_class(counts)
    probs, codes = probs.double(), codes.double()
    chosen = []
    for i, count in enumerate(counts.tolist()):
        left_out = int(0.3 * count)
        if anchors < 1 or left_out + anchors > len(probs):
            raise BadValue(
                f"anchors must be from 1 to {len(probs) - left_out}, as many samples as there are for class {i}, got"
                f" {anchors}."
            )
        chosen.append(probs[:, i].argsort(descending=True, stable=True)[left_out : left_out + anchors])
    at = torch.stack(chosen)
    if not ridge >= 0:
        raise BadValue(f"ridge must not be negative, got {ridge}.")
    rows = _least_squares(codes[at], probs[at], ridge * anchors)
    rows = rows / rows.sum(dim=2, keepdim=True)
    return rows.transpose(0, 1).contiguous()


def _least_squares(codes: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Minimise ``|codes X - targets|^2 + ridge |X - mean|^2`` over X with rows in the simplex.

    By accelerated projected gradients (Beck and Teboulle 2009, FISTA), begun from the mean target. ``(C, L, R)`` and
    ``(C, L, K)`` give ``(C, R, K)``.
    """
    mean = targets.mean(dim=1, keepdim=True)
    gram = codes.mT @ codes + ridge * torch.eye(codes.shape[2]).to(codes)
    moment = codes.mT @ targets + ridge * mean
    step = 1 / torch.linalg.matrix_norm(gram, ord=2)[:, None, None]
    found = mean.expand_as(moment)
    ahead, momentum = found, 1.0
    for _ in range(_STEPS):
        nearer = project_to_simplex(ahead - step * (gram @ ahead - moment))
        if float((nearer - ahead).abs().max()) < _TOLERANCE:
            return nearer
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = nearer + (momentum - 1) / following * (nearer - found)
        found, momentum = nearer, following
    raise BadValue(f"The T of the parts are not found in {_STEPS:,} steps: lower num_parts, or give more anchors.")
