"""What contradicts T-hat is said, what does not is left in peace; and the verdict on it."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional.verdict import doubt, judge
from noisylightning.transition import from_flips, symmetric


@pytest.mark.parametrize(
    ("transition", "accuracy", "message"),
    [
        (torch.eye(10), 0.6, "T-hat is nearly the identity, though noisy validation accuracy is only 0.600"),
        (symmetric(10, 0.1), 0.5, r"by T-hat 0.900 of the labels are right, though .* only 0.500"),
        (symmetric(2, 0.45), 0.75, r"by T-hat 0.550 of the labels are right, though .* is 0.750"),
        (torch.full((4, 4), 0.25), None, "its rows are alike up to 0.000"),
        (symmetric(4, 0.74), None, "its rows are alike up to 0.0"),
        (from_flips(3, {0: 1}, 0.984), None, "class 0 keeps its label with probability 0.016"),
    ],
)
def test_contradictions_are_said(transition, accuracy, message):
    said = doubt(transition, accuracy=accuracy)
    assert said is not None
    assert re.search(message, said)


@given(rate=st.floats(0, 0.7), classes=st.integers(3, 12), lost=st.floats(0, 0.25))
@settings(max_examples=50, deadline=None)
def test_a_true_transition_and_the_accuracy_it_allows_agree(rate, classes, lost):
    transition = symmetric(classes, min(rate, 0.9 - 1 / classes))
    assert doubt(transition, accuracy=(1 - lost) * float(transition[0, 0])) is None


def test_asymmetric_noise_over_one_half_is_no_contradiction():
    """The network predicts what most of a class's labels are, which is more than it keeps."""
    transition = from_flips(10, {2: 0, 3: 5, 4: 7, 5: 6, 6: 5}, 0.6)
    assert doubt(transition, accuracy=0.5 * 1.0 + 0.5 * 0.6) is None


def test_classes_count_by_their_shares():
    transition = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    assert doubt(transition, torch.tensor([90, 10]), accuracy=0.95) is None
    assert doubt(transition, torch.tensor([10, 90]), accuracy=0.95) is not None


@given(seed=st.integers(0, 2**16), accuracy=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_sparse_transition_is_doubted_as_the_dense_one(seed, accuracy):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(5, 5, generator=generator) ** 3 * (torch.rand(5, 5, generator=generator) < 0.6) + 1e-3
    dense[:, 2:] *= torch.rand(5, 3, generator=generator) < 0.7
    dense = dense / dense.sum(dim=1, keepdim=True)
    assert doubt(dense.to_sparse(), accuracy=accuracy) == doubt(dense, accuracy=accuracy)


# The verdict


def test_good_evidence_is_enough():
    verdict = judge(symmetric(10, 0.2), accuracy=0.78, gain=(0.05, 0.01), p_value=0.4)
    assert (verdict.decision, verdict.corrects, verdict.flipped, verdict.exchangeable) == ("correct", True, (), ())
    assert verdict.sentence.startswith("Correct: a held-out label is more probable with T-hat, by +0.0500 ± 0.0100")
    assert "(p = 0.4)." in verdict.sentence
    assert verdict.condition == pytest.approx((1 / (1 - 0.2 * 10 / 9) - 1) * 2 * 9 / 10 + 1, rel=1e-5)


def test_what_was_not_measured_is_said():
    said = judge(symmetric(10, 0.2)).sentence
    assert said.startswith("Correct: nobody measured whether T-hat foretells labels better than no T; whether noise")
    assert said.endswith("was not tested.")


@pytest.mark.parametrize(
    ("transition", "evidence", "reason"),
    [
        (torch.eye(3), {}, "T-hat is the identity"),
        (
            symmetric(3, 0.2),
            {"gain": (0.01, 0.01)},
            r"does not make a held-out label surely more probable, by \+0.0100",
        ),
        (symmetric(3, 0.2), {"gain": (-0.1, 0.01), "p_value": 0.01}, "surely more probable, by -0.1000"),
        (symmetric(3, 0.2), {"accuracy": 0.4}, "0.800 of the labels are right, though"),
        (torch.full((3, 3), 1 / 3), {"gain": (0.1, 0.01)}, "its rows are alike"),
    ],
)
def test_where_nothing_speaks_for_it_there_is_no_correction(transition, evidence, reason):
    verdict = judge(transition, **evidence)
    assert verdict.decision == "do not correct"
    assert not verdict.corrects
    assert re.search(reason, verdict.sentence)
    assert verdict.sentence.endswith("take the weights of plain training that noisy validation data chose.")


NEARLY_SINGULAR = torch.tensor([[0.503, 0.497, 0.0], [0.497, 0.503, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("transition", "evidence", "reason"),
    [
        (symmetric(3, 0.2), {"p_value": 0.05}, r"have different noise \(p = 0.05\), or T-hat is off"),
        (from_flips(3, {0: 1, 1: 0}, 0.45), {}, "noisy labels cannot tell apart cat and dog"),
        (from_flips(3, {0: 1}, 0.6), {"named": True}, "labelled as another than as themselves: cat as dog"),
        (NEARLY_SINGULAR, {"named": True}, "nearly singular, of condition number 167"),
    ],
)
def test_what_speaks_against_the_estimate_of_accuracy_leaves_the_correction(transition, evidence, reason):
    verdict = judge(transition, gain=(0.05, 0.01), class_names=["cat", "dog", "eel"], **evidence)
    assert verdict.decision == "correct, but do not trust the estimate of accuracy"
    assert re.search(reason, verdict.sentence)


def test_noise_that_depends_on_the_sample_is_no_ground_for_trust():
    verdict = judge(symmetric(3, 0.2), gain=(0.05, 0.01), gain_in="accuracy", p_value=0.4)
    assert verdict.decision == "correct, but do not trust the estimate of accuracy"
    assert verdict.gain_in == "accuracy"
    assert "foretold more often with T-hat, by +0.0500 ± 0.0100 in accuracy, but noise seems to" in verdict.sentence
    none = judge(symmetric(3, 0.2), gain=(0.01, 0.01), gain_in="accuracy")
    assert none.decision == "do not correct"
    assert "T-hat does not surely foretell more, by +0.0100 ± 0.0100 in accuracy" in none.sentence


def test_a_class_that_training_has_lost_is_said():
    """Of two that are labelled alike a network may take all for one, and foretell labels nearly as well."""
    transition, shares = from_flips(3, {0: 1, 1: 0}, 0.6), torch.tensor([200, 200, 200])
    verdict = judge(transition, shares=shares, predicted=torch.tensor([390, 10, 200]), gain=(0.05, 0.01), named=True)
    assert verdict.decision == "correct, but do not trust the estimate of accuracy"
    assert "class 1 is predicted for 10 of 600 samples, where T-hat expects 200: training has lost" in verdict.sentence
    found = judge(transition, shares=shares, predicted=torch.tensor([340, 60, 200]), gain=(0.05, 0.01), named=True)
    assert "lost" not in found.sentence
    rare = judge(transition, shares=torch.tensor([290, 290, 20]), predicted=torch.tensor([300, 300, 0]), named=True)
    assert "lost" not in rare.sentence  # a class that is like no other may be rare, or hard


def test_trusted_labels_settle_names():
    transition = from_flips(3, {0: 1, 1: 0}, 0.45)
    assert judge(transition).exchangeable == ((0, 1),)
    assert judge(transition, named=True).decision == "correct"


@pytest.mark.parametrize("transition", [symmetric(4, 0.3), from_flips(4, {0: 1, 2: 3}, 0.6)])
def test_a_sparse_transition_is_judged_as_the_dense_one(transition):
    assert judge(transition.to_sparse(), p_value=0.3) == judge(transition, p_value=0.3)


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"p_value": 1.5}, "p_value is a probability, got 1.5"),
        ({"gain": (0.1, -1.0)}, "gain is a mean difference and its standard error"),
        ({"gain": (float("nan"), 1.0)}, "gain is a mean difference"),
    ],
)
def test_evidence_that_is_none_is_refused(evidence, message):
    with pytest.raises(ValueError, match=message):
        judge(symmetric(3, 0.2), **evidence)
