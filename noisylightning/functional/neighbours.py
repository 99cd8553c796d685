"""The nearest neighbours of samples by their features."""

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue

_BLOCK = 2**26  # similarities at a time


def nearest_neighbours(
    features: Tensor, num: int, queries: Tensor | None = None, groups: Tensor | None = None
) -> Tensor:
    """Find the nearest neighbours of samples, by the cosine of their centred features, exactly.

    It compares each query with every sample, in blocks, on the features' device: ``O(Q N D)`` time.

    Args:
        features: Shape ``(N, D)``, floating; computed with in float32 at least.
        num: How many neighbours to find for each query.
        queries: Places of the samples whose neighbours are asked for, shape ``(Q,)``; all where it is left out.
        groups: Which group each sample is in, integers of shape ``(N,)``; features are centred, and neighbours found,
            within the group alone, as features of different networks must be.

    Returns:
        Places of the neighbours, nearest first, the sample itself not among them, ``(Q, num)``.

    Raises:
        TypeError: If the features are not floating point.
        ValueError: If they are no table, NaN or infinite, or the same for all samples; or if a group has too few.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-1.1, -0.1]])
        >>> nearest_neighbours(features, num=1).flatten()
        tensor([1, 0, 3, 2])
    """
    if not features.is_floating_point():
        raise BadType(f"features must be floating point, got {features.dtype}: convert them.")
    if features.ndim != 2:
        raise BadValue(f"features must be of shape (N, D), got {tuple(features.shape)}: flatten them.")
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise BadValue(f"features must be finite, but row {row} holds NaN or infinity: mend or leave out that sample.")
    queries = torch.arange(len(features), device=features.device) if queries is None else queries
    if groups is None:
        return _of_group(features, num, queries)
    found = queries.new_empty(len(queries), num)
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        asked = (groups[queries] == group).nonzero().flatten()
        places = torch.searchsorted(members, queries[asked])
        found[asked] = members[_of_group(features[members], num, places)]
    return found


def _of_group(features: Tensor, num: int, queries: Tensor) -> Tensor:
    if len(features) <= num:
        raise BadValue(
            f"{num} nearest neighbours need more than {num} samples, got {len(features)}: give more samples, or ask for"
            " fewer neighbours (neighbours)."
        )
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    centred = features - features.mean(dim=0, dtype=torch.float64).to(features.dtype)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    if float(norms.max()) <= 1e-6 * float(torch.linalg.vector_norm(features, dim=1).max()):
        raise BadValue(f"The features of all {len(features)} samples are the same, so that no sample is near another.")
    directions = torch.where(norms > 0, centred / norms, 0)
    found = []
    for block in queries.split(max(1, _BLOCK // len(features))):
        similarities = directions[block] @ directions.T
        similarities.scatter_(1, block[:, None], -torch.inf)
        found.append(similarities.topk(num, dim=1).indices)
    return torch.cat(found) if found else queries.new_empty(0, num)
