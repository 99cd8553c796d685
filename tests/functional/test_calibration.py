"""Calibration by noisy labels: against a search of its own, exact in any order, and back from a known distortion."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import approx_fprime

from noisylightning.functional import calibration
from noisylightning.functional.calibration import VectorScaling, calibrate
from noisylightning.functional.expectation_maximization import log_likelihood
from noisylightning.transition import SparseTransition, symmetric

CLASSES = 3


def drawn(seed: int, num: int = 4000, noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Calibrated logits, noisy labels and the T that made them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, CLASSES, generator=generator, dtype=torch.float64)
    transition = symmetric(CLASSES, noise).double()
    clean = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, torch.multinomial(transition[clean], 1, generator=generator)[:, 0], transition


def objective(
    scaling: VectorScaling, logits: torch.Tensor, labels: torch.Tensor, transition: torch.Tensor
) -> torch.Tensor:
    """What it makes largest, written anew."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    p = (centred * scaling.log_scale.exp() + scaling.bias).softmax(dim=1)
    fit = (p @ transition)[torch.arange(len(labels)), labels].log().sum()
    return fit - 5 * (scaling.log_scale.square().sum() + scaling.bias.square().sum())


@pytest.mark.parametrize("stretched", [0.4, 2.5])
def test_it_undoes_a_distortion(stretched):
    logits, labels, transition = drawn(0, 20_000)
    distorted = stretched * logits + torch.tensor([0.0, 1.0, -1.0])
    mended = calibrate(distorted, labels, transition)(distorted)

    def error(scores: torch.Tensor) -> float:
        return float((scores.softmax(dim=1) - logits.softmax(dim=1)).abs().mean())

    assert error(mended) < 0.25 * error(distorted)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_no_small_change_makes_labels_more_probable(seed):
    logits, labels, transition = drawn(seed, 300)
    found = calibrate(logits, labels, transition)
    parameters = torch.cat([found.log_scale, found.bias]).numpy()

    def value(parameters: np.ndarray) -> float:
        scaling = VectorScaling(*torch.from_numpy(parameters).chunk(2))
        return float(objective(scaling, logits, labels, transition)) / len(labels)

    assert np.abs(approx_fprime(parameters, value, 1e-6)).max() < 1e-3
    assert value(parameters) >= value(np.zeros_like(parameters))


def test_it_is_the_same_in_any_order():
    logits, labels, transition = drawn(1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    found, shuffled = calibrate(logits, labels, transition), calibrate(logits[order], labels[order], transition)
    assert torch.equal(found.log_scale, shuffled.log_scale)
    assert torch.equal(found.bias, shuffled.bias)


def test_of_very_many_some_speak_that_their_places_choose(monkeypatch):
    logits, labels, transition = drawn(1)
    index = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    whole = calibrate(logits, labels, transition, index)
    monkeypatch.setattr(calibration, "_ENTRIES", 4000)
    found = calibrate(logits, labels, transition, index)
    order = index.argsort()
    shuffled = calibrate(logits[order], labels[order], transition, index[order])
    assert torch.equal(found.bias, shuffled.bias)
    assert not torch.equal(found.bias, whole.bias)
    assert (found.log_scale - whole.log_scale).abs().max() < 0.5


def test_a_sparse_transition_and_a_start_lead_to_the_same():
    logits, labels, _ = drawn(3)
    transition = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.2, 0.0, 0.8]], dtype=torch.float64)
    found = calibrate(logits, labels, transition)
    sparse = SparseTransition(transition.to_sparse())
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(calibrate(logits, labels, sparse).bias, found.bias, **close)
    again = calibrate(logits, labels, transition, start=found)
    torch.testing.assert_close(again.bias, found.bias, **close)


def test_classes_may_stay_as_they_are():
    logits, labels, transition = drawn(6)
    found = calibrate(2 * logits, labels, transition, fixed=[0, 1])
    assert not found.log_scale[:2].any()
    assert not found.bias[:2].any()
    assert found.log_scale[2] < -0.1


def test_few_samples_change_little():
    logits, labels, transition = drawn(4, 6)
    found = calibrate(logits, labels, transition)
    assert found.log_scale.abs().max() < 0.3
    assert found.bias.abs().max() < 0.3


def test_logits_that_rule_classes_out_are_taken():
    logits, labels, transition = drawn(5, 200)
    logits[:50, 0] = -torch.inf
    scaled = calibrate(logits, labels, transition)(logits)
    assert scaled.isfinite().all()
    assert log_likelihood(scaled, labels, transition).isfinite().all()


def test_the_dtype_stays_but_not_half_precision():
    scaling = VectorScaling.identity(2)
    for given_dtype, dtype in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        assert scaling(torch.zeros(1, 2, dtype=given_dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("logits", "labels", "transition", "message"),
    [
        ([[float("nan"), 0.0]], [0], [[1.0, 0.0], [0.0, 1.0]], "NaN"),
        ([[0.0, 0.0]], [2], [[1.0, 0.0], [0.0, 1.0]], "2"),
        ([[0.0, 0.0]], [1], [[1.0, 0.0], [1.0, 0.0]], "labelled 1, which no class is by T"),
    ],
)
def test_bad_input(logits, labels, transition, message):
    with pytest.raises(ValueError, match=message):
        calibrate(torch.tensor(logits), torch.tensor(labels), torch.tensor(transition))
