"""The clean posterior and the importance weights, against enumeration in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forward import problem, random_transition, soft

from noisylightning.functional import clean_log_posterior, importance_weights, noisy_log_posterior
from noisylightning.transition import LowRankTransition, SparseTransition, SymmetricTransition, symmetric

pytestmark = pytest.mark.usefixtures("way")


def enumerated(logits, labels, transition):
    """p_j T[j, y] / sum_i p_i T[i, y], one sample at a time."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    joint = np.array([row * transition[:, label] for row, label in zip(p, labels, strict=True)])
    return p, joint / joint.sum(1, keepdims=True)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 7), scale=st.floats(0, 5))
def test_both_are_what_enumeration_gives(seed, classes, scale):
    logits, labels, transition = problem((5, classes), seed)
    logits = scale * logits
    p, posterior = enumerated(logits.numpy(), labels.numpy(), transition.numpy())
    got = clean_log_posterior(logits, labels, transition).exp().numpy()
    np.testing.assert_allclose(got, posterior, rtol=1e-9, atol=1e-300)
    weights = importance_weights(logits, labels, transition).numpy()
    rows = np.arange(5)
    np.testing.assert_allclose(weights, p[rows, labels] / (p @ transition.numpy())[rows, labels], rtol=1e-9)
    every = importance_weights(logits, logits.softmax(1), transition).numpy()
    np.testing.assert_allclose(every, p / (p @ transition.numpy()), rtol=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 7))
def test_averaged_over_the_noisy_label_the_posterior_is_the_prior(seed, classes):
    logits, _, transition = problem((1, classes), seed)
    labels = torch.arange(classes)
    posterior = clean_log_posterior(logits.expand(classes, -1), labels, transition).exp()
    q = noisy_log_posterior(logits, transition).exp()
    torch.testing.assert_close((q.T * posterior).sum(0), logits.softmax(1)[0])


def test_exact_where_probabilities_underflow():
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.7, 0.3], [0.0, 1e-6, 1 - 1e-6]])
    rows = list(itertools.product([-1e4, 0.0, 30.0, 1e4], repeat=3))
    samples, labels = zip(*itertools.product(rows, range(3)), strict=True)
    logits, labels = torch.tensor(samples, requires_grad=True), torch.tensor(labels)
    got = clean_log_posterior(logits, labels, transition)
    expected = (logits.double() + transition.double().log().t()[labels]).log_softmax(1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=2e-6)
    finite = torch.where(expected.isfinite(), got, 0)
    assert torch.autograd.grad(finite.sum(), logits)[0].isfinite().all()


def test_shapes_missing_labels_and_impossible_ones():
    logits, labels, transition = problem((2, 4, 3))
    flat = clean_log_posterior(logits.movedim(1, -1).reshape(6, 4), labels.flatten(), transition)
    got = clean_log_posterior(logits, labels, transition)
    torch.testing.assert_close(got.movedim(1, -1).reshape(6, 4), flat)
    labels[0, 1] = -100
    got = clean_log_posterior(logits, labels, transition)
    torch.testing.assert_close(got[0, :, 1], logits[0, :, 1].log_softmax(0))
    assert importance_weights(logits, labels, transition)[0, 1] == 0
    impossible = clean_log_posterior(torch.zeros(2, 2), torch.tensor([1, 0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert impossible.isnan().all(1).tolist() == [True, False]


def test_a_structured_transition_gives_the_same():
    logits, labels, transition = problem((6, 4))
    rate = torch.full((4,), 0.2, dtype=torch.float64)
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    mixed = torch.diag(1 - rate) + rate.unsqueeze(1) @ uniform
    for structured, dense in [
        (SparseTransition(transition.to_sparse()), transition),
        (SymmetricTransition(4, 0.3), symmetric(4, 0.3, dtype=torch.float64)),
        (LowRankTransition(1 - rate, rate.unsqueeze(1), uniform), mixed),
    ]:
        for function in (clean_log_posterior, importance_weights):
            torch.testing.assert_close(
                function(logits, labels, structured), function(logits, labels, dense), rtol=1e-6, atol=1e-7
            )


def test_derivatives_to_scores_and_transition():
    logits, labels, _ = problem((3, 4))
    transition = (random_transition(4, zeros=0.0) + 0.1) / 1.4
    inputs = (logits.requires_grad_(), transition.requires_grad_())
    for function in (clean_log_posterior, importance_weights):
        assert torch.autograd.gradcheck(lambda z, t, function=function: function(z, labels, t), inputs)


def test_compiles_without_a_graph_break_and_maps_over_samples():
    logits, labels, transition = problem((6, 4))
    for function in (clean_log_posterior, importance_weights):
        expected = function(logits, labels, transition)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(logits, labels, transition), expected)


@pytest.mark.parametrize("function", [clean_log_posterior, importance_weights])
def test_refuses_in_one_sentence(function):
    for arguments, error, sentence in [
        ((torch.zeros(2, 3), torch.tensor([0, 3]), torch.eye(3)), ValueError, "label 3"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), torch.eye(4)), ValueError, r"\(3, 3\), got \(4, 4\)"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]).int(), torch.eye(3)), TypeError, "int32"),
        ((torch.zeros(2, 3), torch.tensor([0, 1]), np.eye(3)), TypeError, "ndarray"),
    ]:
        with pytest.raises(error, match=sentence) as caught:
            function(*arguments)
        assert str(caught.value).endswith(".")
    with pytest.raises(TypeError, match="class indices"):
        clean_log_posterior(torch.zeros(2, 3), soft(torch.tensor([0, 1]), 3), torch.eye(3))
