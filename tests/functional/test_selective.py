"""T by selective classification: convergence, the rule for the prefix by brute force, and the bounds."""

import numpy as np
import pytest
import torch

from noisylightning.functional import selective as module
from noisylightning.functional.selective import clopper_pearson, selective_classification
from noisylightning.transition import pairflip, relative_l1_error

TRUE = pairflip(3, 0.3, dtype=torch.float64)


def blobs(num: int, seed: int = 0, distance: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.arange(num) % 3
    features = distance * torch.eye(3)[clean] + torch.randn(num, 3, generator=generator)
    return features, torch.multinomial(TRUE[clean], 1, generator=generator).flatten()


@pytest.mark.parametrize("method", ["prefix", "cost"])
def test_it_converges_where_classes_can_be_told_apart(method):
    features, noisy = blobs(6000)
    found = selective_classification(features, noisy, 3, method=method, min_accepted=0.1)
    assert relative_l1_error(found.transition, TRUE) < 0.12
    assert (found.counts.sum(dim=1) >= 600).all()
    assert (found.lower is None) == (method == "cost")


def test_the_prefix_is_the_purest_and_of_equals_the_largest(monkeypatch):
    noisy = torch.tensor([0, 0, 1, 0, 1, 1] * 10)
    score = torch.arange(60.0, 0, -1)
    monkeypatch.setattr(module, "_scores", lambda *_: score)
    places = torch.arange(60)
    for least in range(1, 60):
        shares = [float((noisy[:k] == 0).double().mean()) for k in range(least, 61)]
        best = max(range(least, 61), key=lambda k: (shares[k - least], k))
        found = module._prefix(np.zeros((60, 1)), noisy, places, places, 0, least)
        assert torch.equal(found, places[:best])


def test_bounds_hold_for_the_mean_posterior_of_what_was_accepted():
    """The labels are drawn anew: nine in ten times at least, by design far more often, all bounds hold together."""
    held = 0
    for seed in range(20):
        features, noisy = blobs(900, seed)
        found = selective_classification(features, noisy, 3, min_accepted=0.05, confidence=0.9)
        mean = torch.stack([TRUE[places % 3].mean(dim=0) for places in found.accepted])
        held += int(((found.lower <= mean) & (mean <= found.upper)).all())
    assert held >= 18


def test_clopper_pearson_covers_exactly():
    """For each probability the chance of a count whose bounds miss it, summed over all counts, is at most the error."""
    trials = torch.tensor(30)
    lower, upper = clopper_pearson(torch.arange(31), trials, error=0.1)
    for probability in (0.01, 0.2, 0.5, 0.93):
        chance = torch.distributions.Binomial(30, torch.tensor(probability)).log_prob(torch.arange(31.0)).exp()
        assert float(chance[(lower > probability) | (upper < probability)].sum()) <= 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "both"}, "method must be 'prefix' or 'cost', got 'both'"),
        ({"min_accepted": 0.6}, "min_accepted must be in"),
        ({"min_accepted": 0.005}, "2 of 300 samples are too few for a row of T: raise min_accepted to 0.033"),
        ({"confidence": 1.0}, "confidence must be in"),
        ({"num_classes": 4}, "no example among 300 carries the noisy label 3"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    features, noisy = blobs(300)
    with pytest.raises(ValueError, match=message):
        selective_classification(features, noisy, **{"num_classes": 3, "min_accepted": 0.1, **arguments})


def test_features_that_tell_nothing_are_refused():
    features, noisy = blobs(300)
    with pytest.raises(ValueError, match="features of all 300 samples are the same"):
        selective_classification(torch.full_like(features, 0.1), noisy, 3, min_accepted=0.1)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        selective_classification(features, noisy, 3, min_accepted=0.1)


def test_a_classifier_that_does_not_converge_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_ITERATIONS", 1)
    features, noisy = blobs(300)
    with pytest.raises(ValueError, match="classifier of label 0 did not converge in 1 steps"):
        selective_classification(features, noisy, 3, min_accepted=0.1)


@pytest.mark.parametrize("own", [0, 1])
def test_a_label_that_the_half_that_learns_has_not_or_has_alone_is_refused(own):
    with pytest.raises(ValueError, match="half of the data has no example of label 2"):
        module._scores(np.eye(4), np.full(4, bool(own)), None, 2, np.eye(4))


def test_costs_that_accept_too_few_are_refused(monkeypatch):
    monkeypatch.setattr(module, "_scores", lambda table, *_: -torch.ones(300))
    features, noisy = blobs(300)
    with pytest.raises(ValueError, match="No classifier of label 0 accepts 30 samples"):
        selective_classification(features, noisy, 3, method="cost", min_accepted=0.1)
