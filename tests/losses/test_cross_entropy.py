"""The base class and cross-entropy: equal to torch's, in value, gradient and conventions."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from noisylightning.corrections import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.losses import CrossEntropy, LikelihoodLoss, Loss


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 2)])
@pytest.mark.parametrize("kind", ["index", "ignored", "soft"])
def test_is_cross_entropy(shape, kind):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(4, shape[:1] + shape[2:], generator=generator)
    if kind == "ignored":
        target[0] = -1
    elif kind == "soft":
        target = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1)
    for weight, reduction in itertools.product([None, [0.5, 2.0, 1.0, 0.0]], ["mean", "sum", "none"]):
        loss = CrossEntropy(weight=weight, ignore_index=-1, reduction=reduction).double()
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        got = loss(ours, target)
        ignore = {} if kind == "soft" else {"ignore_index": -1}
        expected = F.cross_entropy(theirs, target, loss.weight, reduction=reduction, **ignore)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_one_sample_without_a_batch():
    logits = torch.tensor([1.0, 2.0, 4.0])
    assert CrossEntropy()(logits, torch.tensor(1)) == F.cross_entropy(logits, torch.tensor(1))
    soft = torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(CrossEntropy(reduction="none")(logits, soft), F.cross_entropy(logits, soft))


def test_values_are_entries_of_the_vector():
    logits = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    loss = CrossEntropy()
    vector = loss.vector(logits)
    assert vector.shape == logits.shape
    for label in range(3):
        torch.testing.assert_close(loss.values(logits, torch.full((5, 2), label)), vector[:, label])


def test_weights_are_kept_in_the_state_and_load_as_plain_tensors(tmp_path):
    loss = CrossEntropy(weight=[1, 2, 3])
    torch.save(loss.state_dict(), tmp_path / "loss.pt")
    other = CrossEntropy(weight=[0, 0, 0])
    other.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    assert other.weight.tolist() == [1, 2, 3]


def test_an_accelerator_is_asked_about_its_targets_once(monkeypatch):
    """A device without values stands in for one: what matters is how often they are read."""
    calls = []
    monkeypatch.setattr("noisylightning.losses.base.validate_target", lambda *args: calls.append(args))
    loss = CrossEntropy()
    for _ in range(3):
        loss.check_and_mask(torch.zeros(2, 3, device="meta"), torch.zeros(2, device="meta").long())
    assert len(calls) == 1


class Doubled(CrossEntropy):
    """Another formula under an inherited flag."""

    def of_log_likelihood(self, log_p):
        return -2 * log_p


class Named(CrossEntropy):
    """The same formula."""


class DoubledByAStranger:
    def values(self, logits, labels):
        return 2 * super().values(logits, labels)


class Mixed(DoubledByAStranger, CrossEntropy):
    """Another formula, from a class that knows nothing of losses."""


class OwnNegativeLogarithm(LikelihoodLoss):
    """The same formula, and it says so."""

    proper = True
    is_cross_entropy = True

    def of_log_likelihood(self, log_p):
        return log_p.neg()


@pytest.mark.parametrize("correction", [ForwardCorrection, BackwardCorrection, ImportanceReweighting])
@pytest.mark.parametrize(("kind", "factor"), [(Named, 1), (OwnNegativeLogarithm, 1), (Doubled, 2), (Mixed, 2)])
def test_a_subclass_joins_the_kernel_only_with_the_same_formula(correction, kind, factor):
    assert kind.is_cross_entropy is (factor == 1)
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    transition = torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    for weight in (None, [1.0, 2.0, 0.5]):
        plain = correction(transition, loss=CrossEntropy(weight=weight))(logits, target)
        torch.testing.assert_close(correction(transition, loss=kind(weight=weight))(logits, target), factor * plain)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: CrossEntropy(reduction="avg"), ValueError, "reduction.*'avg'"),
        (lambda: CrossEntropy(weight=[1.0, -1.0]), ValueError, "class weights, got"),
        (lambda: CrossEntropy(weight=[[1.0]]), ValueError, "weight must be a vector"),
        (
            lambda: CrossEntropy(weight=[1.0])(torch.zeros(1, 2), torch.tensor([0])),
            ValueError,
            "1 entries but.*2 classes",
        ),
        (lambda: CrossEntropy()(torch.zeros(1, 2), torch.tensor([2])), ValueError, "label 2"),
        (lambda: CrossEntropy()(torch.zeros(1, 2), torch.tensor([-1])), ValueError, "label -1"),
        (lambda: CrossEntropy()(torch.zeros(1, 2), torch.ones(1, 2)), ValueError, "sums to 2"),
        (lambda: CrossEntropy()(torch.zeros(1, 2), torch.ones(1)), ValueError, "class probabilities"),
        (lambda: CrossEntropy()(torch.zeros(1, 2).long(), torch.tensor([0])), TypeError, "logits must be floating"),
        (lambda: CrossEntropy()(torch.zeros(2, 2), torch.tensor([0])), ValueError, r"\(1,\).*need \(2,\)"),
        (lambda: Loss()(torch.zeros(1, 2), torch.tensor([0])), NotImplementedError, r"Loss defines no vector"),
        (lambda: LikelihoodLoss()(torch.zeros(1, 2), torch.tensor([0])), NotImplementedError, "of_log_likelihood"),
    ],
)
def test_refuses_in_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")
