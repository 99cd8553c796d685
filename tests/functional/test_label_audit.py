"""The probability that a label is wrong, and how many are: against NumPy, enumeration and draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import (
    audit_labels,
    clean_log_probs,
    error_sums,
    expected_errors,
    label_posterior,
)
from noisylightning.functional.exact_sums import from_fixed
from noisylightning.transition import GroupedTransition, SymmetricTransition, pairflip, symmetric


def problem(seed, num=200, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, classes, generator=generator, dtype=torch.float64)
    T = torch.rand(classes, classes, generator=generator, dtype=torch.float64) + 2 * torch.eye(classes)
    T = T / T.sum(1, keepdim=True)
    clean = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    noisy = torch.multinomial(T[clean], 1, generator=generator).flatten()
    return logits, T, clean, noisy


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 6))
def test_it_is_bayes_rule(seed, classes):
    logits, T, _, noisy = problem(seed, 20, classes)
    found = audit_labels(logits, noisy, T)
    for p, y, wrong, label, prob in zip(logits.softmax(1).numpy(), noisy.tolist(), *found, strict=True):
        joint = p * T.numpy()[:, y]
        posterior = joint / joint.sum()
        assert float(wrong) == pytest.approx(1 - posterior[y], abs=1e-12)
        assert int(label) == posterior.argmax()
        assert float(prob) == pytest.approx(posterior.max(), abs=1e-12)


def test_a_tiny_probability_is_exact():
    T = symmetric(3, 0.3, dtype=torch.float64)
    wrong = audit_labels(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([0]), T).wrong
    assert float(wrong) == pytest.approx(2 * np.exp(-60.0) * 0.15 / 0.7, rel=1e-9)


@pytest.mark.parametrize("kind", ["dense", "sparse", "structured"])
def test_every_kind_of_transition_says_the_same(kind):
    logits, _, _, noisy = problem(0)
    dense = symmetric(4, 0.3, dtype=torch.float64)
    T = {"dense": dense, "sparse": dense.to_sparse(), "structured": SymmetricTransition(4, 0.3)}[kind]
    found, expected = audit_labels(logits, noisy, T), audit_labels(logits, noisy, dense)
    torch.testing.assert_close(found.wrong, expected.wrong, atol=1e-6, rtol=1e-5)


def test_each_sample_may_have_a_transition_of_its_own():
    logits, _, _, noisy = problem(0, 6)
    matrices, groups = torch.stack([symmetric(4, 0.1), pairflip(4, 0.4)]), torch.tensor([0, 1, 0, 1, 1, 0])
    found = audit_labels(logits, noisy, GroupedTransition(matrices, groups).at(None, torch.arange(6)))
    for i, group in enumerate(groups.tolist()):
        alone = audit_labels(logits[i : i + 1], noisy[i : i + 1], matrices[group])
        assert float(found.wrong[i]) == pytest.approx(float(alone.wrong[0]), rel=1e-6)


def test_sums_are_the_same_bits_in_any_order_and_batch():
    logits, T, _, noisy = problem(1, 500)
    posterior = label_posterior(logits, noisy, T)
    whole, order = error_sums(posterior, noisy), torch.randperm(500, generator=torch.Generator().manual_seed(0))
    parts = [error_sums(posterior[part], noisy[part]) for part in order.split(37)]
    assert torch.equal(sum(parts[1:], parts[0]), whole)


def test_numbers_are_sums_of_probabilities():
    logits, T, _, noisy = problem(2, 300)
    posterior = label_posterior(logits, noisy, T)
    found = expected_errors(error_sums(posterior, noisy))
    expected = np.zeros((4, 4))
    for row, y in zip(posterior.numpy(), noisy.tolist(), strict=True):
        expected[:, y] += row
    np.testing.assert_allclose(found.pairs.numpy(), expected, atol=1e-6)
    assert found.total == pytest.approx(expected.sum() - np.trace(expected))
    assert found.pairs.sum(0).round().long().tolist() == noisy.bincount(minlength=4).tolist()


def test_the_interval_covers_the_number_of_wrong_labels():
    """Labels drawn 400 times as the posterior says."""
    covered = pairs = 0
    for seed in range(400):
        logits, T, clean, noisy = problem(seed, 300)
        found = expected_errors(error_sums(label_posterior(logits, noisy, T), noisy))
        covered += found.low <= int((clean != noisy).sum()) <= found.high
        pairs += bool(found.pairs_low[0, 1] <= int(((clean == 0) & (noisy == 1)).sum()) <= found.pairs_high[0, 1])
    assert 0.92 <= covered / 400 <= 0.98
    assert 0.90 <= pairs / 400 <= 0.99


def counted(T, samples):
    """T-hat from so many samples of each class, and its standard errors."""
    estimate = torch.distributions.Multinomial(samples, T).sample() / samples
    return estimate, (estimate * (1 - estimate) / samples).sqrt()


def test_the_interval_covers_with_an_estimated_transition():
    """T-hat counted from 100 samples a class, whose error is then the larger part."""
    torch.manual_seed(0)
    covered = with_known = pair_covered = 0
    for seed in range(300):
        logits, T, clean, noisy = problem(seed, 2000)
        estimate, error = counted(T, 100)
        sums = error_sums(label_posterior(logits, noisy, estimate), noisy)
        truth = int((clean != noisy).sum())
        found, known = expected_errors(sums, estimate, error), expected_errors(sums)
        covered += found.low <= truth <= found.high
        with_known += known.low <= truth <= known.high
        pair_covered += bool(
            found.pairs_low[2, 3] <= int(((clean == 2) & (noisy == 3)).sum()) <= found.pairs_high[2, 3]
        )
    assert 0.90 <= covered / 300 <= 0.99
    assert with_known / 300 < 0.85
    assert 0.90 <= pair_covered / 300 <= 1


def test_the_slopes_are_those_of_finite_differences():
    logits, T, _, noisy = problem(3, 300)
    sums = error_sums(label_posterior(logits, noisy, T), noisy)
    counts, _, shared = from_fixed(sums)
    slope = shared - counts.diag().diag()
    for i, j in ((0, 0), (1, 2), (3, 1)):
        moved = T.clone()
        moved[i, j] *= 1 + 1e-5
        there = expected_errors(error_sums(label_posterior(logits, noisy, moved), noisy)).total
        here = expected_errors(sums).total
        assert (there - here) / 1e-5 == pytest.approx(float(slope[i, j]), rel=1e-3, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_noisy_posteriors_are_turned_into_clean_ones(seed):
    logits, T, _, _ = problem(seed, 30)
    log_p = clean_log_probs(logits.softmax(1) @ T, T)
    torch.testing.assert_close(log_p.exp(), logits.softmax(1), atol=1e-6, rtol=0)


def test_a_noisy_posterior_out_of_reach_is_met_as_near_as_can_be():
    from scipy.optimize import minimize

    T = symmetric(3, 0.4, dtype=torch.float64)
    q = torch.tensor([[0.7, 0.29, 0.01], [0.05, 0.9, 0.05], [0.999, 0.0005, 0.0005]], dtype=torch.float64)
    found = clean_log_probs(q, T).exp()
    for row, p in zip(q.numpy(), found.numpy(), strict=True):

        def loss(scores, row=row):
            weights = np.exp(scores - scores.max())
            return -(row * np.log(weights / weights.sum() @ T.numpy())).sum()

        best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-12}).fun
        assert -(row * np.log(p @ T.numpy())).sum() <= best + 1e-8


def test_bad_input_is_answered_in_one_sentence():
    logits, T, _, noisy = problem(0, 5)
    never = T.clone()
    never[:, 0], never[:, 1] = 0, T[:, 0] + T[:, 1]
    with pytest.raises(ValueError, match="labelled 0, which no class that the network allows"):
        audit_labels(logits, torch.zeros(5, dtype=torch.long), never)
    with pytest.raises(ValueError, match="got 4"):
        audit_labels(logits, torch.full((5,), 4), T)
    with pytest.raises(ValueError, match="NaN"):
        audit_labels(logits * torch.nan, noisy, T)
    with pytest.raises(ValueError, match="condition number"):
        clean_log_probs(torch.full((1, 2), 0.5), torch.full((2, 2), 0.5))
    sums = error_sums(label_posterior(logits, noisy, T), noisy)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        expected_errors(sums, level=95)
    with pytest.raises(ValueError, match="without the T"):
        expected_errors(sums, standard_error=T)
    with pytest.raises(ValueError, match=r"standard_error must be of shape \(4, 4\)"):
        expected_errors(sums, T, T[:2])
    with pytest.raises(ValueError, match="not negative"):
        expected_errors(sums, T, -T)
