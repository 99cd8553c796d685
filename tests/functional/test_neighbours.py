"""Nearest neighbours against scikit-learn."""

import sys

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from noisylightning.functional import neighbours as module
from noisylightning.functional.neighbours import nearest_neighbours


def reference(features: np.ndarray, num: int) -> np.ndarray:
    centred = features - features.mean(axis=0)
    return NearestNeighbors(n_neighbors=num, metric="cosine").fit(centred).kneighbors(return_distance=False)


@pytest.fixture
def features() -> torch.Tensor:
    return 5 + torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [1, 1000, 2**26])
def test_they_are_those_of_scikit_learn(features, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    np.testing.assert_array_equal(nearest_neighbours(features, 7), reference(features.numpy(), 7))


def test_queries_are_rows_of_the_whole(features):
    queries = torch.tensor([7, 3, 199])
    assert torch.equal(nearest_neighbours(features, 5, queries), nearest_neighbours(features, 5)[queries])


def test_groups_are_data_sets_of_their_own(features):
    groups = torch.arange(200) % 3
    features[groups == 1] += 100  # of another network
    found = nearest_neighbours(features, 4, groups=groups)
    for group in range(3):
        members = (groups == group).nonzero().flatten()
        assert torch.equal(found[members], members[nearest_neighbours(features[members], 4)])


def test_equal_samples_are_neighbours_and_not_themselves():
    features = torch.eye(3).repeat_interleave(4, dim=0)
    found = nearest_neighbours(features, 3)
    assert (found // 4 == torch.arange(12)[:, None] // 4).all()
    assert (found != torch.arange(12)[:, None]).all()


def clouds(num: int = 3000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 8, generator=generator)[torch.arange(num) % 20] + 0.3 * torch.randn(
        num, 8, generator=generator
    )


@pytest.mark.parametrize(("probed", "least", "most"), [(16, 0.99, 1.0), (1, 0.5, 0.99)])
def test_approximate_ones_are_nearly_all_the_nearest_and_never_the_sample_itself(probed, least, most, monkeypatch):
    monkeypatch.setattr(module, "_PROBED", probed)
    features, queries = clouds(), torch.arange(0, 3000, 7)
    exact = nearest_neighbours(features, 10, queries)
    found = nearest_neighbours(features, 10, queries, approximate=True)
    hits = (found[:, :, None] == exact[:, None]).any(dim=2).double().mean()
    assert least <= hits <= most
    assert (found != queries[:, None]).all()
    assert all(len(row.unique()) == 10 for row in found)


def test_approximate_ones_are_exact_where_the_cells_of_a_query_hold_too_few():
    features = clouds(60)
    assert torch.equal(nearest_neighbours(features, 59, approximate=True), nearest_neighbours(features, 59))


def test_approximate_ones_stay_within_groups():
    features, groups = clouds(), torch.arange(3000) % 2
    found = nearest_neighbours(features, 5, groups=groups, approximate=True)
    assert (groups[found] == groups[:, None]).all()


def test_without_faiss_approximate_ones_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'noisylightning\[faiss\]'"):
        nearest_neighbours(clouds(60), 2, approximate=True)


def test_an_exact_search_takes_long_where_a_group_is_large(monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 40)
    features, groups = clouds(60), torch.arange(60) % 2
    assert module.approximate_where_large(features)
    assert not module.approximate_where_large(features, groups)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not module.approximate_where_large(features)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(5, 2, dtype=torch.long), TypeError, "features must be floating point"),
        (torch.zeros(5), ValueError, r"of shape \(N, D\), got \(5,\)"),
        (torch.tensor([[0.0], [float("nan")], [1.0]]), ValueError, "row 1 holds NaN or infinity"),
        (torch.full((5, 3), 0.1), ValueError, "features of all 5 samples are the same"),
        (torch.randn(2, 3), ValueError, "2 nearest neighbours need more than 2 samples, got 2"),
    ],
)
def test_bad_features_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbours(features, 2)
