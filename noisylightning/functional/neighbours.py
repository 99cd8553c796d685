"""The nearest neighbours of samples by their features."""

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue, NoSuchPackage

_BLOCK = 2**26  # similarities at a time
_LARGE = 2**18  # samples of a group
_PROBED = 16  # cells of sqrt(N) that a query looks into
_TRAINED = 64  # samples of a cell that say where its middle is


def nearest_neighbours(
    features: Tensor,
    num: int,
    queries: Tensor | None = None,
    groups: Tensor | None = None,
    approximate: bool = False,
) -> Tensor:
    """Find the nearest neighbours of samples, by the cosine of their centred features.

    It compares each query with every sample, in blocks, on the features' device: ``O(Q N D)`` time. With
    ``approximate`` faiss parts the samples into ``sqrt(N)`` cells and compares a query with those of the 16 nearest
    cells alone, on the processor, which takes much less time for a million samples.

    Args:
        features: Shape ``(N, D)``, floating; computed with in float32 at least.
        num: How many neighbours to find for each query.
        queries: Places of the samples whose neighbours are asked for, shape ``(Q,)``; all where it is left out.
        groups: Which group each sample is in, integers of shape ``(N,)``; features are centred, and neighbours found,
            within the group alone, as features of different networks must be.
        approximate: Whether a few of the neighbours may be others that are nearly as near.

    Returns:
        Places of the neighbours, nearest first, the sample itself not among them, ``(Q, num)``.

    Raises:
        TypeError: If the features are not floating point.
        ValueError: If they are no table, NaN or infinite, or the same for all samples; or if a group has too few.
        ModuleNotFoundError: If neighbours may be approximate, and faiss is not installed.

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
        return _of_group(features, num, queries, approximate)
    found = queries.new_empty(len(queries), num)
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        asked = (groups[queries] == group).nonzero().flatten()
        places = torch.searchsorted(members, queries[asked])
        found[asked] = members[_of_group(features[members], num, places, approximate)]
    return found


def approximate_where_large(features: Tensor, groups: Tensor | None = None) -> bool:
    """Whether an exact search would take long: of more than 2^18 samples of a group, on the processor, with faiss.

    Args:
        features: Shape ``(N, D)``.
        groups: As in :func:`nearest_neighbours`.

    Returns:
        Whether to seek them approximately; never where faiss is not installed.

    Example:
        >>> approximate_where_large(torch.zeros(100, 2))
        False
    """
    largest = len(features) if groups is None else int(groups.unique(return_counts=True)[1].max())
    return largest > _LARGE and features.is_cpu and find_spec("faiss") is not None


def _of_group(features: Tensor, num: int, queries: Tensor, approximate: bool) -> Tensor:
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
    return _in_cells(directions, num, queries) if approximate else _exactly(directions, num, queries)


def _exactly(directions: Tensor, num: int, queries: Tensor) -> Tensor:
    found = []
    for block in queries.split(max(1, _BLOCK // len(directions))):
        similarities = directions[block] @ directions.T
        similarities.scatter_(1, block[:, None], -torch.inf)
        found.append(similarities.topk(num, dim=1).indices)
    return torch.cat(found) if found else queries.new_empty(0, num)


def _in_cells(directions: Tensor, num: int, queries: Tensor) -> Tensor:
    try:
        import faiss
    except ImportError as error:
        raise NoSuchPackage(
            "Approximate nearest neighbours need faiss: pip install 'noisylightning[faiss]', or leave out"
            " approximate=True."
        ) from error
    samples = directions.float().cpu().numpy()
    middles = faiss.IndexFlatIP(samples.shape[1])
    index = faiss.IndexIVFFlat(middles, samples.shape[1], math.isqrt(len(samples)), faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _TRAINED
    index.train(samples)
    index.add(samples)
    index.nprobe = _PROBED
    found = torch.from_numpy(index.search(samples[queries.cpu().numpy()], num + 1)[1]).to(queries.device)
    itself = found == queries[:, None]
    found = found.gather(1, itself.int().argsort(dim=1, stable=True))[:, :num]  # the sample itself to the end
    few = (found < 0).any(dim=1)  # its cells held too few samples
    found[few] = _exactly(directions, num, queries[few])
    return found
