"""The test that noise depends on the class alone: its theorems, its level, its power, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from noisylightning.functional.class_conditional import class_conditional_test, group_alike, mixture_excess
from noisylightning.transition import from_flips, symmetric

TRUE = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.6, 0.4], [0.3, 0.0, 0.7]], dtype=torch.float64)


def samples(seed: int, num: int = 1800, overlap: float = 0.0):
    """Features of three Gaussian classes, a network that is sure of the nearest centre, and the clean classes."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.arange(num) % 3
    features = 5 * torch.nn.functional.one_hot(clean, 3) + torch.randn(num, 3, generator=generator)
    if overlap:
        features = features * (1 - overlap) + 5 * overlap / 3
    return features, 8.0 * features / features.std(), clean, generator


def draw(transition, clean, generator):
    return torch.multinomial(transition[clean], 1, generator=generator).flatten()


@given(seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_a_mixture_of_rows_has_no_excess(seed):
    generator = torch.Generator().manual_seed(seed)
    mixture = torch.rand(5, 3, generator=generator, dtype=torch.float64) ** 2
    counts = 1000 * (mixture / mixture.sum(dim=1, keepdim=True)) @ TRUE
    assert float(mixture_excess(counts, TRUE).max()) < 0.2  # at the edge of what the rows allow steps become small


def test_the_excess_is_the_likelihood_ratio_of_the_best_mixture():
    counts = np.array([[90.0, 10.0, 0.0], [0.0, 0.0, 50.0], [10.0, 80.0, 10.0]])
    transition = TRUE.numpy()

    def lost(z, n):
        mixture = np.exp(z) / np.exp(z).sum()
        return -2 * np.sum(n[n > 0] * np.log((mixture @ transition)[n > 0] / (n[n > 0] / n.sum())))

    expected = [
        minimize(lost, np.zeros(3), args=(n,), method="Nelder-Mead", options={"maxiter": 9999}).fun for n in counts
    ]
    found = mixture_excess(torch.from_numpy(counts), TRUE)
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert min(expected) > 1


@pytest.mark.parametrize(
    "transition",
    [TRUE, symmetric(3, 0.5).double(), from_flips(3, {0: 1, 1: 2, 2: 0}, 0.45).double()],
    ids=["dense", "symmetric", "pair-flip"],
)
@pytest.mark.parametrize("overlap", [0.0, 0.4], ids=["apart", "overlapping"])
def test_it_keeps_its_level(transition, overlap):
    features, logits, clean, generator = samples(0, overlap=overlap)
    p_values = [
        class_conditional_test(
            logits, draw(transition, clean, generator), features, transition, replicates=79, seed=repetition
        ).p_value
        for repetition in range(40)
    ]
    assert sum(p <= 0.05 for p in p_values) <= 6  # 40 at 5 %: more once in 300 times
    assert np.median(p_values) > 0.25


def test_a_transition_that_is_off_by_its_standard_errors_is_no_evidence():
    features, logits, clean, generator = samples(1)
    noisy = draw(TRUE, clean, generator)
    off = TRUE + torch.tensor([[-0.06, 0.06, 0.0], [0.06, -0.06, 0.0], [0.0, 0.06, -0.06]])
    surely, hardly = (
        class_conditional_test(logits, noisy, features, off, error).p_value
        for error in (torch.full((3, 3), 0.001), torch.full((3, 3), 0.1))
    )
    assert surely == class_conditional_test(logits, noisy, features, off).p_value == 0.01
    assert hardly > 0.05


@pytest.mark.parametrize("kind", ["rates", "targets"])
def test_noise_that_varies_within_a_class_is_found(kind):
    """The classes' T is the same as on average; only the features tell who is mislabelled, or as what."""
    features, logits, clean, generator = samples(2, num=3000)
    high = features[torch.arange(3000), (clean + 1) % 3] > 0
    if kind == "rates":
        rate = torch.where(high, 0.45, 0.15)
        flipped = torch.rand(3000, generator=generator) < rate
        noisy = torch.where(flipped, (clean + 1 + torch.randint(2, (3000,), generator=generator)) % 3, clean)
    else:
        flipped = torch.rand(3000, generator=generator) < 0.3
        noisy = torch.where(flipped, (clean + 1 + high.long()) % 3, clean)
    found = class_conditional_test(logits, noisy, features, symmetric(3, 0.3), replicates=99)
    assert found.p_value == 0.02
    assert found.statistic > 1.5 * found.expected
    class_alone = draw(symmetric(3, 0.3), clean, generator)
    assert class_conditional_test(logits, class_alone, features, symmetric(3, 0.3), replicates=99).p_value > 0.05


def test_the_same_seed_gives_the_same_bits():
    features, logits, clean, generator = samples(3)
    noisy = draw(TRUE, clean, generator)
    first, again = (class_conditional_test(logits, noisy, features, TRUE.float(), TRUE / 100) for _ in "ab")
    assert first == again


def test_a_label_that_no_class_has_ends_it():
    features, logits, clean, _ = samples(4)
    found = class_conditional_test(logits, clean, features, torch.tensor([[1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 1.0]]))
    assert (found.p_value, found.statistic) == (0.0, float("inf"))


def test_groups_lie_within_a_class_and_together():
    features = torch.tensor([[0.0], [9.0], [0.1], [9.1], [0.2], [4.0]])
    classes = torch.tensor([0, 0, 0, 0, 0, 1])
    groups = group_alike(features, classes, group_size=2)
    assert groups[0] == groups[2] == groups[4] != groups[1] == groups[3]
    assert groups.tolist().count(int(groups[5])) == 1
    assert sorted(set(groups.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(5, 2)}, ValueError, r"features of 6 samples must be of shape \(6, D\), got \(5, 2\)"),
        ({"features": torch.zeros(6, 2).long()}, TypeError, "features must be floating point, got torch.int64"),
        ({"features": torch.full((6, 2), torch.nan)}, ValueError, "row 0 holds NaN or infinity"),
        ({"noisy_labels": torch.full((6,), 2)}, ValueError, "2"),
        ({"transition": torch.ones(2, 2)}, ValueError, "row 0 of the transition matrix sums to 2"),
        ({"standard_error": torch.ones(3, 3)}, ValueError, r"has its shape, got \(3, 3\)"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1, got 0"),
        ({"replicates": 0}, ValueError, "replicates must be at least 1, got 0"),
        ({"group_size": 100}, ValueError, "leave no class two groups of 100"),
    ],
)
def test_what_it_cannot_test_is_refused(change, error, message):
    given = {
        "logits": torch.eye(2)[torch.arange(6) % 2],
        "noisy_labels": torch.arange(6) % 2,
        "features": torch.arange(12.0).view(6, 2),
        "transition": torch.tensor([[0.8, 0.2], [0.2, 0.8]]),
        "group_size": 1,
    }
    with pytest.raises(error, match=message):
        class_conditional_test(**{**given, **change})
