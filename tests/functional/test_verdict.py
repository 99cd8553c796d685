"""What contradicts T-hat is said; what does not is left in peace."""

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
