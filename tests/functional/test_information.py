"""The standard error of the most likely T: shares, repetitions, and what cannot be told apart."""

import pytest
import torch

from noisylightning.functional import information
from noisylightning.functional.expectation_maximization import expected_counts, maximize
from noisylightning.functional.information import standard_error
from noisylightning.transition import symmetric

CLASSES = 3
TRUE = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)


def test_where_the_classes_are_known_it_is_that_of_shares():
    counts = torch.tensor([100, 200, 300])
    logits = 60 * torch.eye(CLASSES, dtype=torch.float64).repeat_interleave(counts, dim=0)
    torch.testing.assert_close(
        standard_error(logits, TRUE), (TRUE * (1 - TRUE) / counts[:, None]).sqrt(), atol=1e-5, rtol=1e-4
    )


def test_it_is_as_large_as_the_deviation_where_classes_overlap():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, CLASSES, generator=generator, dtype=torch.float64)
    transition = symmetric(CLASSES, 0.4).double()
    found = []
    for _ in range(150):
        clean = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        labels = torch.multinomial(transition[clean], 1, generator=generator)[:, 0]
        estimate = transition
        for _ in range(20):
            estimate = maximize(expected_counts(logits, labels, estimate))[0]
        found.append(estimate)
    torch.testing.assert_close(
        standard_error(logits, transition).mean(), torch.stack(found).std(dim=0).mean(), rtol=0.05, atol=0
    )
    one_step = maximize(expected_counts(logits, labels, estimate, torch.arange(2000), replicates=100))[1:].std(dim=0)
    assert one_step.mean() < 0.8 * standard_error(logits, transition).mean()  # which is why it is not taken


def test_it_does_not_depend_on_the_order_and_few_speak_for_many(monkeypatch):
    logits = torch.randn(1000, CLASSES, generator=torch.Generator().manual_seed(1))
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    whole = standard_error(logits, TRUE, index)
    order = index.argsort()
    assert torch.equal(standard_error(logits[order], TRUE, index[order]), whole)
    monkeypatch.setattr(information, "_SAMPLES", 100)
    torch.testing.assert_close(standard_error(logits, TRUE, index), whole, rtol=0.2, atol=0.01)


def test_classes_that_cannot_be_told_apart_have_the_largest():
    logits = torch.tensor([[1.0, 1.0, -9.0], [-9.0, -9.0, 9.0]]).repeat(500, 1)
    error = standard_error(logits, symmetric(CLASSES, 0.3))
    assert (error[:2] > 0.4).all()
    assert (error <= 0.5).all()
    assert (error[2] < 0.05).all()


@pytest.mark.parametrize(
    ("logits", "transition", "message"),
    [
        (torch.zeros(4, 2), torch.eye(3), r"logits must be of shape \(N, 3\)"),
        (torch.zeros(4, 129), torch.eye(129), "128 are the most"),
        (torch.tensor([[0.0, -torch.inf]]), torch.eye(2), "no sample for one of class 1"),
    ],
)
def test_bad_input(logits, transition, message):
    with pytest.raises(ValueError, match=message):
        standard_error(logits, transition)
