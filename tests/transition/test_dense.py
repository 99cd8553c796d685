"""T as a matrix: fixed or trained; and the one way to a T from whatever a user gives."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from noisylightning.transition import (
    DenseTransition,
    SymmetricTransition,
    Transition,
    as_transition,
    pairflip,
    symmetric,
)

DOUBLE = {"dtype": torch.float64}


class Learnt(Transition):
    """The smallest subclass: T from free scores."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.scores = nn.Parameter(3 * torch.eye(num_classes, **DOUBLE))

    def to_dense(self):
        return self.scores.softmax(1)


def problem(classes=4, samples=5):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(samples, classes, generator=generator, **DOUBLE)
    return logits, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("make", [lambda: DenseTransition(pairflip(4, 0.3, **DOUBLE)), lambda: Learnt(4)])
def test_every_method_is_its_formula(make):
    transition = make()
    dense = transition.to_dense().detach()
    logits, target = problem()
    p, inverse = logits.softmax(1), dense.inverse()
    rows = torch.arange(len(target))
    likelihood = (p @ dense).log()
    soft = p.flip(1)
    unbiased = (inverse[target] * p.log()).sum(1)
    for prepared in (False, True):
        if prepared:
            transition.factorize(1e3)
        for got, expected in [
            (transition.log_likelihood(logits, target), likelihood[rows, target]),
            (transition.mean_cross_entropy(logits, target), -likelihood[rows, target].mean()),
            (transition.log_posterior(logits), likelihood),
            (transition.label_columns(target), dense.t()[target]),
            (transition.invert(), inverse),
            (transition.inverse_rows(target, torch.float64), inverse[target]),
            (transition.inverse_rows(soft, torch.float64), soft @ inverse),
            (transition.unbiased_log_likelihood(logits, target), unbiased),
            (transition.mean_unbiased_cross_entropy(logits, target), -unbiased.mean()),
            (torch.tensor(transition.condition_number(), **DOUBLE), inverse.abs().sum(1).max()),
        ]:
            torch.testing.assert_close(got.detach(), expected)
    assert transition.at(None, None) is transition
    assert transition.penalty(logits) is None


def test_a_fixed_matrix_is_copied_by_columns():
    matrix = pairflip(4, 0.3)
    transition = DenseTransition(matrix)
    matrix.zero_()
    assert torch.equal(transition.matrix, pairflip(4, 0.3))
    assert transition.matrix.t().is_contiguous()
    assert not list(transition.parameters())


def test_a_parameter_is_kept_and_its_inverse_is_never_stale():
    matrix = nn.Parameter(pairflip(4, 0.3, **DOUBLE))
    transition = DenseTransition(matrix)
    transition.factorize(1e3)
    assert next(transition.parameters()) is matrix
    with torch.no_grad():
        matrix.copy_(symmetric(4, 0.2, **DOUBLE))
    torch.testing.assert_close(transition.invert(), matrix.inverse())
    assert transition.invert().requires_grad
    transition.start_from(pairflip(4, 0.1, **DOUBLE))
    assert torch.equal(matrix, pairflip(4, 0.1, **DOUBLE))
    assert torch.equal(transition.state_dict()["matrix"], matrix)


def test_what_is_set_or_loaded_is_what_is_inverted():
    transition = DenseTransition(pairflip(4, 0.3, **DOUBLE))
    transition.factorize(1e3)
    kept = transition.invert()
    assert transition.invert() is kept
    transition.start_from(symmetric(4, 0.2, **DOUBLE))
    torch.testing.assert_close(kept, symmetric(4, 0.2, **DOUBLE).inverse())  # in place
    transition.load_state_dict(DenseTransition(pairflip(4, 0.1, **DOUBLE)).state_dict())
    torch.testing.assert_close(copy.deepcopy(transition).invert(), pairflip(4, 0.1, **DOUBLE).inverse())
    with pytest.raises(ValueError, match="condition number"):
        transition.start_from(symmetric(4, 0.75, **DOUBLE))
    assert torch.equal(transition.matrix, pairflip(4, 0.1, **DOUBLE))
    torch.testing.assert_close(transition.invert(), pairflip(4, 0.1, **DOUBLE).inverse())


def test_a_transition_is_made_from_what_there_is(tmp_path):
    np.save(tmp_path / "T.npy", pairflip(3, 0.2).numpy())
    for given in (pairflip(3, 0.2), tmp_path / "T.npy", str(tmp_path / "T.npy")):
        assert torch.equal(as_transition(given, 3).to_dense(), pairflip(3, 0.2))
    structured = SymmetricTransition(3, 0.2)
    assert as_transition(structured) is structured
    matrix = torch.eye(3)
    assert as_transition(matrix, copy=False).to_dense() is matrix


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: DenseTransition(torch.eye(3).requires_grad_()), ValueError, r"wants a gradient.*nn.Parameter\(T\)"),
        (lambda: DenseTransition(torch.ones(2, 2)), ValueError, "sums to 2"),
        (lambda: DenseTransition(torch.eye(1)), ValueError, "at least 2 classes"),
        (lambda: DenseTransition(torch.eye(3)).start_from(torch.eye(4)), ValueError, "for 4 classes but 3"),
        (lambda: SymmetricTransition(3, 0.1).start_from(torch.eye(3)), TypeError, "SymmetricTransition cannot take"),
        (lambda: as_transition(np.eye(3)), TypeError, "ndarray"),
        (lambda: as_transition(np.eye(3), copy=False), TypeError, "ndarray"),
        (lambda: as_transition("missing.npy"), FileNotFoundError, "missing.npy"),
        (lambda: as_transition(torch.eye(3), 4), ValueError, "for 3 classes but 4"),
        (lambda: as_transition(SymmetricTransition(3, 0.1), 4), ValueError, "for 3 classes but 4"),
        (lambda: DenseTransition(torch.eye(3)).load_state_dict({"matrix": torch.eye(4)}), ValueError, r"\(4, 4\)"),
        (lambda: Transition(3).to_dense(), NotImplementedError, "to_dense"),
    ],
)
def test_refuses_in_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")
