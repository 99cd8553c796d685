import math

import pytest
import torch

from noisylightning.functional.bootstrap import bootstrap_weights, expected_l1_error, standard_deviation
from noisylightning.transition import relative_l1_error


def test_weights_are_poisson_and_independent():
    weights = bootstrap_weights(torch.arange(20_000), replicates=20, seed=3)
    assert weights.shape == (20_000, 21)
    assert (weights[:, 0] == 1).all()
    drawn = weights[:, 1:]
    for k in range(5):
        expected = math.exp(-1) / math.factorial(k)
        assert abs((drawn == k).double().mean() - expected) < 5 * math.sqrt(expected / drawn.numel())
    correlations = drawn.t().double().corrcoef()
    assert (correlations - torch.eye(20)).abs().max() < 5 / math.sqrt(20_000)
    neighbours = torch.stack([drawn[:-1, 0], drawn[1:, 0]]).double().corrcoef()
    assert abs(neighbours[0, 1]) < 5 / math.sqrt(20_000)


def test_a_sample_has_its_weights_wherever_it_is():
    whole = bootstrap_weights(torch.arange(100), replicates=5, seed=7)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bootstrap_weights(order, 5, seed=7), whole[order])
    assert torch.equal(bootstrap_weights(torch.tensor([41]), 5, seed=7)[0], whole[41])
    assert not torch.equal(bootstrap_weights(torch.arange(100), 5, seed=8), whole)


def test_standard_error_of_a_mean():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = bootstrap_weights(torch.arange(4000), 400).double()
    means = (weights * values[:, None]).sum(0) / weights.sum(0)
    error = standard_deviation(means[1:])
    assert abs(error / (values.std() / math.sqrt(4000)) - 1) < 0.15


def test_refusals():
    with pytest.raises(ValueError, match=r"index -1"):
        bootstrap_weights(torch.tensor([0, -1]), 2)
    assert bootstrap_weights(torch.tensor([0, -1]), 0).tolist() == [[1], [1]]
    with pytest.raises(ValueError, match=r"at least 2 replicates, got 1"):
        standard_deviation(torch.zeros(1, 2, 2))


def test_the_expected_error_is_the_mean_one_of_normal_estimates():
    generator = torch.Generator().manual_seed(0)
    true, errors = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    true /= true.sum(dim=1, keepdim=True)
    drawn = true + errors * torch.randn(20_000, 4, 4, generator=generator, dtype=torch.float64)
    mean = torch.stack([relative_l1_error(estimate, true) for estimate in drawn]).mean()
    assert expected_l1_error(errors) == pytest.approx(float(mean), rel=0.01)
