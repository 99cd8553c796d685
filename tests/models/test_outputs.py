import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.models import looks_like_probabilities


@settings(max_examples=40, deadline=None)
@given(
    num_classes=st.integers(2, 1000),
    scale=st.floats(0, 30),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_softmax_is_seen_and_logits_are_not(num_classes, scale, seed, dtype):
    logits = (scale * torch.randn(5, num_classes, generator=torch.Generator().manual_seed(seed))).to(dtype)
    assert looks_like_probabilities(logits.softmax(dim=1))
    assert not looks_like_probabilities(logits.log_softmax(dim=1))
    assert not looks_like_probabilities(logits)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 3)])
def test_shapes_that_say_nothing(shape):
    assert not looks_like_probabilities(torch.ones(shape))


def test_one_row_that_is_no_distribution_suffices():
    probabilities = torch.full((4, 2, 3), 0.5)
    assert looks_like_probabilities(probabilities)
    probabilities[3, 0, 0] = 0.6
    assert not looks_like_probabilities(probabilities)
    assert not looks_like_probabilities(torch.full((4, 2), torch.nan))
