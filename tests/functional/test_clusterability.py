"""T from neighbours' labels: convergence where neighbours share the class, and the worth of pure surroundings."""

import pytest
import torch

from noisylightning.functional import clusterability as module
from noisylightning.functional.clusterability import clusterability
from noisylightning.transition import from_flips, pairflip, relative_l1_error, symmetric

MATRICES = {
    "symmetric": symmetric(4, 0.5, dtype=torch.float64),
    "pair-flip": pairflip(4, 0.4, dtype=torch.float64),
    "asymmetric": from_flips(4, {0: 1, 2: 3}, 0.45, dtype=torch.float64),
}


def blobs(num: int, classes: int, distance: float, seed: int = 0, prior=None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prior = torch.ones(classes) if prior is None else torch.tensor(prior)
    clean = torch.multinomial(prior, num, replacement=True, generator=generator)
    return distance * torch.eye(classes, 8)[clean] + torch.randn(num, 8, generator=generator), clean


def labelled(clean: torch.Tensor, transition: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.multinomial(transition[clean], 1, generator=torch.Generator().manual_seed(seed)).flatten()


@pytest.mark.parametrize("name", MATRICES)
def test_it_converges_where_neighbours_share_the_class(name):
    true = MATRICES[name]

    def error(num: int, seed: int) -> float:
        features, clean = blobs(num, 4, distance=10, seed=seed)
        found = clusterability(features, labelled(clean, true, 100 + seed), 4)
        return float(relative_l1_error(found.transition, true))

    few, many = (sum(error(num, seed) for seed in range(4)) / 4 for num in (500, 4000))
    assert many < 0.08
    assert many < 0.6 * few


def test_classes_of_unequal_size_are_found():
    true = MATRICES["pair-flip"]
    features, clean = blobs(8000, 4, distance=10, prior=[0.1, 0.2, 0.3, 0.4])
    found = clusterability(features, labelled(clean, true), 4, share=1.0)
    assert relative_l1_error(found.transition, true) < 0.06
    torch.testing.assert_close(
        found.mixture.prior, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("name", ["asymmetric", "pair-flip"])
def test_pure_surroundings_take_most_of_the_bias(name):
    true = MATRICES[name]
    features, clean = blobs(8000, 4, distance=3.5)
    noisy = labelled(clean, true)
    found, all_triples = clusterability(features, noisy, 4), clusterability(features, noisy, 4, share=1.0)
    assert found.share < 1
    assert relative_l1_error(found.transition, true) < 0.7 * relative_l1_error(all_triples.transition, true)


def test_a_choice_by_surroundings_takes_no_account_of_the_triple():
    """Which triples are kept depends on the labels of the others alone, given the fit that judges them."""
    features, clean = blobs(500, 3, distance=6)
    noisy = labelled(clean, symmetric(3, 0.3))
    near = module.nearest_neighbours(features, 30)
    fit = module.start_of(3, (0, 0, 0))
    before = module._surroundings(noisy[near[:1, 2:]], fit)
    changed = noisy.clone()
    changed[torch.cat([torch.tensor([0]), near[0, :2]])] = 2
    after = module._surroundings(changed[near[:1, 2:]], fit)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("distance", [3.0, 10.0])
def test_the_mismatch_is_about_that_of_the_clean_labels(distance):
    features, clean = blobs(8000, 4, distance)
    actual = float((clean[module.nearest_neighbours(features, 1)[:, 0]] != clean).float().mean())
    found = clusterability(features, labelled(clean, MATRICES["pair-flip"]), 4)
    assert found.mismatch == pytest.approx(actual, abs=0.06)


def test_only_a_drawn_share_of_many_samples_is_asked():
    features, clean = blobs(4000, 3, distance=10)
    noisy = labelled(clean, symmetric(3, 0.3))
    found = clusterability(features, noisy, 3, queries=1000, share=1.0)
    assert len(found.tuples) == 1000
    assert not torch.equal(found.places, clusterability(features, noisy, 3, queries=1000, share=1.0, seed=1).places)


def test_features_of_two_networks_are_kept_apart():
    true = MATRICES["pair-flip"]
    features, clean = blobs(6000, 4, distance=10)
    groups = torch.arange(6000) % 2
    features[groups == 1] = features[groups == 1].roll(1, dims=1)  # class i looks like class i + 1 of the other
    noisy = labelled(clean, true)
    error = relative_l1_error(clusterability(features, noisy, 4, groups=groups).transition, true)
    assert error < 0.06
    assert relative_l1_error(clusterability(features, noisy, 4).transition, true) > 5 * error


def test_without_a_third_moment_of_the_classes_many_are_no_trouble():
    """A hundred classes have a million triples of labels; only those that were seen are looked at."""
    classes = 100
    clean = torch.arange(8000) % classes
    features = torch.eye(classes)[clean] + 0.02 * torch.randn(8000, classes, generator=torch.Generator().manual_seed(0))
    true = pairflip(classes, 0.3)
    found = clusterability(features, labelled(clean, true), classes)
    assert relative_l1_error(found.transition.float(), true) < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbours": 2}, "neighbours must be at least 3"),
        ({"neighbours": 60}, "60 nearest neighbours need more than 60 samples, got 60"),
        ({"share": 0.0}, "share must be None or in"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"num_classes": 4}, "no example among 60 carries the noisy label 3"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    features, clean = blobs(60, 3, distance=5)
    with pytest.raises(ValueError, match=message):
        clusterability(features, clean, **{"num_classes": 3, **arguments})
