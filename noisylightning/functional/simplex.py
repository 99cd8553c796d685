"""T as the corners of the simplex that noisy posteriors fill."""

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.names import name_rows
from noisylightning.functional.probabilities import check_probabilities

_ROUNDS = 3


def simplex_transition(
    probs: Tensor, *, depth: float = 0.5, seek: float = 0.05, weights: Tensor | None = None
) -> Tensor:
    r"""Estimate T from the corners of the simplex that the noisy posteriors fill.

    As :math:`p(\text{noisy} \mid x) = p(\text{clean} \mid x) T`, posteriors are mixtures of the rows of T; where each
    class has samples of which it is sure, the rows are the corners of their hull. They are found one by one by
    successive projection (Gillis and Vavasis, TPAMI 2014): the longest of what is left of the posteriors after
    projection off the corners before. A corner is the mean of the posteriors that lie farthest in that direction, so
    that it is no outlier (after Nadisic, Gillis and Kervazo 2023). The posteriors' mixing weights then say how large
    the classes are, and each corner becomes the mean of a share of its own class.

    Rows are known up to their order; they are named by the largest product of the diagonal.

    Args:
        probs: Noisy posteriors p(noisy | x), shape ``(N, C)``, rows sum to one.
        depth: Of each class the share of samples, those that lie farthest out, that its row is the mean of.
        seek: As that, of N / C samples, while corners are sought; less than the share of the rarest class.
        weights: How often each sample counts, not negative, shape ``(N,)``; once where it is left out.

    Returns:
        T-hat, ``(C, C)``, rows sum to one, float64.

    Raises:
        TypeError: If the posteriors are not floating point.
        ValueError: If they are no table of probabilities, are fewer than classes or span fewer than C dimensions; or
            if a share is outside (0, 1].

    Example:
        >>> transition = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.1, 0.0, 0.9]], dtype=torch.float64)
        >>> sure = torch.eye(3, dtype=torch.float64).repeat(20, 1)
        >>> unsure = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> clean = torch.cat([sure, unsure / unsure.sum(dim=1, keepdim=True)])
        >>> simplex_transition(clean @ transition, depth=0.3)
        tensor([[0.8000, 0.2000, 0.0000],
                [0.0000, 0.7000, 0.3000],
                [0.1000, 0.0000, 0.9000]], dtype=torch.float64)
    """
    check_probabilities(probs)
    for name, value in (("depth", depth), ("seek", seek)):
        if not 0 < value <= 1:
            raise BadValue(f"{name} must be in (0, 1], got {value}.")
    num, classes = probs.shape
    if num < classes:
        raise BadValue(f"{num} predictions span no simplex of {classes} corners: give at least one a class.")
    probs = probs.double()
    weights = probs.new_ones(num) if weights is None else weights.double()
    corners = _corners(probs, weights, seek * float(weights.sum()) / classes)
    for _ in range(_ROUNDS):
        mixing = probs @ _inverse(corners)
        prior = (weights @ mixing).clamp_min(0)
        sizes = depth * weights.sum() * prior / prior.sum()
        corners = torch.stack([_far(probs, weights, *pair) for pair in zip(mixing.t(), sizes.tolist(), strict=True)])
    corners = corners / corners.sum(dim=1, keepdim=True)
    return corners[name_rows(corners)]


def _corners(probs: Tensor, weights: Tensor, size: float) -> Tensor:
    """Successive projection, each corner a mean over the weight ``size``."""
    corners: list[Tensor] = []
    basis = probs.new_empty(0, probs.shape[1])
    for _ in range(probs.shape[1]):
        rest = probs - probs @ basis.t() @ basis
        direction = rest[torch.where(weights > 0, rest.square().sum(dim=1), -1).argmax()]
        for _ in range(_ROUNDS):
            corner = _far(probs, weights, rest @ direction, size)
            direction = corner - corner @ basis.t() @ basis
        corners.append(corner)
        basis = torch.linalg.qr(torch.stack(corners).t())[0].t()
    return torch.stack(corners)


def _far(probs: Tensor, weights: Tensor, distance: Tensor, size: float) -> Tensor:
    """The mean of the posteriors of the largest distance, over a weight ``size``, but at least one."""
    order = distance.argsort(descending=True, stable=True)
    weights = weights[order]
    before = weights.cumsum(0) - weights
    taken = weights.minimum((max(size, 1.0) - before).clamp_min(0))
    return taken @ probs[order] / taken.sum()


def _inverse(corners: Tensor) -> Tensor:
    inverse, singular = torch.linalg.inv_ex(corners)
    if singular or not float(inverse.abs().max()) < 1e6:
        raise BadValue(
            f"The predictions span fewer than {len(corners)} dimensions, so that T has no row for some class: train the"
            " network for longer, or use another estimator."
        )
    return inverse
