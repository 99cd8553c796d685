"""The estimators that look at all samples at once: the same bits whatever the order, batches and processes."""

import copy

import pytest
import torch

from noisylightning import ClusterabilityEstimator, CostSensitiveEstimator, SimplexEstimator
from noisylightning.functional.clusterability import clusterability
from noisylightning.functional.selective import selective_classification
from noisylightning.functional.simplex import simplex_transition
from noisylightning.predictions import Predictions
from noisylightning.transition import pairflip

TRUE = pairflip(3, 0.3)
MAKERS = {
    "clusterability": lambda **options: ClusterabilityEstimator(3, **options),
    "prefix": lambda **options: CostSensitiveEstimator(3, min_accepted=0.05, **options),
    "cost": lambda **options: CostSensitiveEstimator(3, "cost", min_accepted=0.05, **options),
    "simplex": lambda **options: SimplexEstimator(3, **options),
}


def predictions(num: int = 600, seed: int = 0, distance: float = 10.0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.arange(num) % 3
    features = distance * torch.eye(3, 5)[clean] + torch.randn(num, 5, generator=generator)
    p_clean = (features[:, :3] / 2).softmax(dim=1)
    noisy = torch.multinomial(TRUE[clean], 1, generator=generator).flatten()
    return Predictions.from_probs(p_clean @ TRUE, noisy, features=features, index=7 + 2 * torch.arange(num))


def fed(name: str, batches, **options):
    estimator = MAKERS[name](**options)
    for batch in batches:
        estimator.update(batch)
    return estimator


@pytest.mark.parametrize("name", MAKERS)
def test_neither_order_nor_batches_nor_processes_change_a_bit(name):
    data = predictions()
    replicates = 3
    whole = fed(name, [data], replicates=replicates)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    shuffled = data.select(order)
    parts = fed(name, shuffled.split(37), replicates=replicates)
    ranks = [fed(name, shuffled.select(slice(start, None, 2)).split(50), replicates=replicates) for start in (0, 1)]
    merged = copy.deepcopy(ranks[0])
    for state, reduction in merged._reductions.items():
        values = [getattr(rank, state) for rank in ranks]
        if isinstance(values[0], list):
            setattr(merged, state, [torch.cat([tensor for value in values for tensor in value])])
        else:
            setattr(merged, state, reduction(torch.stack(values)))
    expected, error = whole.compute(), whole.standard_error()
    for other in (parts, merged):
        assert torch.equal(other.compute(), expected)
        assert torch.equal(other.standard_error(), error)


def test_they_are_their_functions():
    data = predictions()
    expected = clusterability(data.features, data.noisy_labels, 3).transition.float()
    assert torch.equal(fed("clusterability", [data]).compute(), expected)
    expected = selective_classification(data.features, data.noisy_labels, 3, min_accepted=0.05).transition.float()
    assert torch.equal(fed("prefix", [data]).compute(), expected)
    assert torch.equal(fed("simplex", [data]).compute(), simplex_transition(data.probs).float())


@pytest.mark.parametrize("name", ["clusterability", "prefix"])
def test_standard_errors_are_about_those_of_labels_drawn_anew(name):
    found, errors = [], []
    for seed in range(12):
        estimator = fed(name, [predictions(900, seed)], replicates=20)
        found.append(estimator.compute())
        errors.append(estimator.standard_error())
    ratio = torch.stack(errors).mean() / torch.stack(found).std(dim=0).mean()
    assert 0.6 < float(ratio) < 1.6


@pytest.mark.parametrize("name", MAKERS)
def test_without_replicates_there_are_no_standard_errors(name):
    assert fed(name, [predictions()]).standard_error() is None


@pytest.mark.parametrize("name", MAKERS)
def test_samples_whose_place_is_unknown_or_double_are_refused(name):
    data = predictions(60)
    data.index[3] = -1
    with pytest.raises(ValueError, match=r"that of 1 is unknown \(-1\): give the index"):
        fed(name, [data]).compute()
    data.index[3] = data.index[4]
    with pytest.raises(ValueError, match="index 15 comes twice"):
        fed(name, [data]).compute()


@pytest.mark.parametrize("name", ["clusterability", "prefix", "cost"])
def test_features_are_needed(name):
    with pytest.raises(ValueError, match="needs features, which these predictions do not have"):
        MAKERS[name]().update(Predictions(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_no_sample_at_all_is_refused(name):
    with pytest.raises(ValueError, match="the loader is empty"):
        MAKERS[name]().compute()


def test_a_warning_says_how_many_neighbours_are_of_another_class():
    estimator = fed("clusterability", [predictions(3000, distance=2.0)])
    with pytest.warns(UserWarning, match=r"About \d+% of nearest neighbours are of another class"):
        estimator.compute()
    assert estimator.found.mismatch > 0.1
