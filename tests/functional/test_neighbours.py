"""Nearest neighbours against scikit-learn."""

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
