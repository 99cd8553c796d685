"""T from trusted samples against the definition in NumPy, and its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import trusted_transition
from noisylightning.transition import relative_l1_error, symmetric


def reference(probs, clean, noisy, pseudo_counts):
    """The mean of a Dirichlet posterior, class by class."""
    rows = []
    for i in range(probs.shape[1]):
        mean = probs[clean == i].mean(axis=0)
        counts = np.array([np.sum((clean == i) & (noisy == j)) for j in range(probs.shape[1])])
        rows.append(
            mean if math.isinf(pseudo_counts) else (counts + pseudo_counts * mean) / (counts.sum() + pseudo_counts)
        )
    return np.stack(rows)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), pseudo_counts=st.sampled_from([0.5, 100.0, math.inf]), classes=st.integers(2, 6))
def test_agrees_with_numpy(seed, pseudo_counts, classes):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(classes), size=50)
    clean = np.concatenate([np.arange(classes), rng.integers(-1, classes, 50 - classes)])
    noisy = rng.integers(-1, classes, 50)
    found = trusted_transition(*map(torch.from_numpy, (probs, clean, noisy)), pseudo_counts=pseudo_counts)
    np.testing.assert_allclose(found.numpy(), reference(probs, clean, noisy, pseudo_counts), atol=1e-7)


def test_one_sample_a_class_gives_its_posterior():
    probs = torch.randn(4, 4).softmax(dim=1)
    torch.testing.assert_close(trusted_transition(probs, torch.arange(4), torch.full((4,), -1)), probs)


@pytest.mark.parametrize("pseudo_counts", [100.0, math.inf])
def test_exact_posteriors_give_t_as_samples_grow(pseudo_counts):
    """Posteriors p(clean | x) T of sure samples give T itself; the noisy labels do not spoil it."""
    true = symmetric(5, 0.4, dtype=torch.float64)
    errors = []
    for num in (100, 100_000):
        clean = torch.arange(num) % 5
        noisy = torch.multinomial(true[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
        errors.append(
            relative_l1_error(trusted_transition(true[clean], clean, noisy, pseudo_counts=pseudo_counts).double(), true)
        )
    assert errors[1] < 0.01
    assert errors[1] <= errors[0]


def test_noisy_labels_mend_a_wrong_network():
    """The mean prediction of a network that knows nothing of the noise stays wrong, however many samples."""
    true = symmetric(3, 0.5, dtype=torch.float64)
    clean = torch.arange(30_000) % 3
    noisy = torch.multinomial(true[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
    sure = torch.eye(3, dtype=torch.float64)[clean]
    assert relative_l1_error(trusted_transition(sure, clean).double(), true) > 0.9
    assert relative_l1_error(trusted_transition(sure, clean, noisy).double(), true) < 0.03


@pytest.mark.parametrize(
    ("probs", "clean", "options", "error", "message"),
    [
        (torch.eye(3), torch.tensor([0, 1, 1]), {}, ValueError, "none is of class 2; trust one at least"),
        (torch.eye(3), torch.tensor([-1, -1, -1]), {}, ValueError, "the 0 trusted samples: none is of class 0, 1, 2"),
        (torch.eye(3), torch.tensor([0, 1, 3]), {}, ValueError, "Clean labels must be labels between 0 and 2"),
        (torch.eye(3), torch.tensor([0.0, 1, 2]), {}, TypeError, "integer clean labels"),
        (torch.eye(3), torch.arange(2), {}, ValueError, r"clean labels of shape \(2,\)"),
        (torch.eye(3), torch.arange(3), {"pseudo_counts": 0}, ValueError, "pseudo_counts must be positive"),
        (torch.eye(3), torch.arange(3), {"pseudo_counts": math.nan}, ValueError, "pseudo_counts must be positive"),
        (torch.ones(3, 3), torch.arange(3), {}, ValueError, "pass softmax"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(probs, clean, options, error, message):
    with pytest.raises(error, match=message):
        trusted_transition(probs, clean, **options)
