"""Dual-T against NumPy."""

import numpy as np
import pytest
import torch

from noisylightning.functional import anchor_transition, dual_transition


def test_it_is_the_anchor_estimate_times_counts():
    generator = torch.Generator().manual_seed(0)
    probs = (2 * torch.randn(800, 5, generator=generator)).softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).flatten()
    counts = np.zeros((5, 5))
    np.add.at(counts, (probs.numpy().argmax(axis=1), labels.numpy()), 1)
    expected = anchor_transition(probs, labels, quantile=0.9).numpy() @ (counts / counts.sum(axis=1, keepdims=True))
    found = dual_transition(probs, labels, quantile=0.9)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5))


def test_it_is_right_where_the_network_is_overconfident():
    """A network that says 1 for the label that is most probable: the anchor estimate is the identity."""
    true = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.1, 0.0, 0.9]])
    clean = torch.arange(30_000) % 3
    labels = torch.multinomial(true[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
    probs = torch.eye(3)[clean]
    assert torch.equal(anchor_transition(probs, labels, quantile=None), torch.eye(3))
    torch.testing.assert_close(dual_transition(probs, labels, quantile=None), true, atol=0.02, rtol=0)


def test_a_class_that_nobody_predicts_is_named():
    probs = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.4, 0.5], [0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match=r"class 1 is predicted for no sample.*or use AnchorEstimator"):
        dual_transition(probs, torch.tensor([0, 1, 2]), quantile=None)
