"""Backward-corrected cross-entropy: the formula, its conventions, its theorem and its derivatives."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forward import REDUCTIONS, SHAPES, problem, random_transition, soft

from noisylightning.functional import backward_cross_entropy, inverse_rows, invert_transition
from noisylightning.transition import symmetric

pytestmark = pytest.mark.usefixtures("way")


def reference(logits, target, transition, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The formula of the paper in NumPy, one label at a time."""
    logits, target = np.moveaxis(logits, 1, -1), np.asarray(target)
    inverse = np.linalg.inv(np.asarray(transition))
    classes = logits.shape[-1]
    weight = np.ones(classes) if weight is None else np.asarray(weight)
    is_soft = target.dtype.kind == "f"
    target = np.moveaxis(target, 1, -1) if is_soft else target
    losses, divisor = np.zeros(logits.shape[:-1]), 0.0
    for place in np.ndindex(*losses.shape):
        p = np.exp(logits[place] - logits[place].max())
        if is_soft:
            q = target[place]
            divisor += 1
        elif target[place] == ignore_index:
            continue
        else:
            q = np.eye(classes)[target[place]]
            divisor += weight[target[place]]
        q = (1 - label_smoothing) * q + label_smoothing / classes
        losses[place] = q @ inverse @ (weight * -np.log(p / p.sum()))
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / divisor if divisor else np.nan}[reduction]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["index", "ignored", "soft"])
def test_agrees_with_numpy_and_at_the_identity_with_cross_entropy(shape, kind):
    logits, target, transition = problem(shape)
    if kind == "ignored":
        target[0] = 2
    elif kind == "soft":
        target = soft(target, 4)
    some = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    for reduction, weight, smoothing in itertools.product(REDUCTIONS, (None, some), (0.0, 0.2)):
        settings = {
            "ignore_index": 2 if kind == "ignored" else -100,
            "reduction": reduction,
            "label_smoothing": smoothing,
        }
        got = backward_cross_entropy(logits, target, transition, weight=weight, **settings)
        expected = reference(logits.numpy(), target, transition, weight, **settings)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)

        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        got = backward_cross_entropy(ours, target, torch.eye(4, dtype=torch.float64), weight=weight, **settings)
        expected = F.cross_entropy(theirs, target, weight, **settings)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 7), weighted=st.booleans())
def test_the_expectation_over_the_noise_is_the_clean_loss(seed, classes, weighted):
    """Theorem 1 of Patrini et al. (2017), enumerated over clean and noisy labels, in value and in gradient."""
    logits, _, transition = problem((1, classes), seed)
    logits.requires_grad_()
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(seed)).double() if weighted else None
    noisy = torch.stack(
        [
            backward_cross_entropy(logits, torch.tensor([j]), transition, weight=weight, reduction="sum")
            for j in range(classes)
        ]
    )
    scale = noisy.detach().abs().max().clamp(min=1)
    for i in range(classes):
        clean = F.cross_entropy(logits, torch.tensor([i]), weight, reduction="sum")
        expected = (transition[i] * noisy).sum()
        torch.testing.assert_close(expected / scale, clean / scale, rtol=0, atol=1e-10)
        slopes = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (expected, clean)]
        torch.testing.assert_close(slopes[0] / scale, slopes[1] / scale, rtol=0, atol=1e-10)


def test_it_goes_below_zero_and_is_not_clipped():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = backward_cross_entropy(logits, torch.tensor([0]), symmetric(2, 0.2))
    assert loss.item() == pytest.approx(-2e4 / 3, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 3, 1 / 3]]))


@pytest.mark.parametrize("kind", ["index", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_derivatives_of_first_and_second_order(kind, smoothing):
    logits, target, transition = problem((3, 4))
    if kind == "soft":
        target = soft(target, 4)
    inputs = (logits.requires_grad_(), transition.requires_grad_())

    def loss(logits, transition):
        return backward_cross_entropy(logits, target, transition, reduction="none", label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_functorch_agrees_with_autograd():
    logits, target, transition = problem((5, 4))
    each = torch.func.vmap(torch.func.grad(backward_cross_entropy), in_dims=(0, 0, None))(logits, target, transition)
    leaf = logits.clone().requires_grad_()
    backward_cross_entropy(leaf, target, transition, reduction="sum").backward()
    torch.testing.assert_close(each, leaf.grad)


@pytest.mark.parametrize("kind", ["index", "soft"])
def test_compiles_without_a_graph_break(kind):
    logits, target, transition = problem((6, 4), dtype=torch.float32)
    target = soft(target, 4).float() if kind == "soft" else target
    compiled = torch.compile(backward_cross_entropy, fullgraph=True, backend="aot_eager")
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(one, target, transition).backward()
    backward_cross_entropy(two, target, transition).backward()
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["index", "soft"])
def test_autocast_computes_in_float32(dtype, kind):
    logits, target, transition = problem((6, 4), dtype=torch.float32)
    target = soft(target, 4).float() if kind == "soft" else target
    half = logits.to(dtype).requires_grad_()
    expected = backward_cross_entropy(half.detach().float(), target, transition)
    with torch.autocast("cpu", dtype):
        got = backward_cross_entropy(half, target, transition)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    got.backward()
    assert half.grad.dtype == dtype


def test_the_rows_of_the_inverse():
    transition = random_transition(5, seed=2)
    inverse = invert_transition(transition)
    torch.testing.assert_close(inverse @ transition, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(inverse.sum(1), torch.ones(5, dtype=torch.float64))
    target = torch.tensor([[3, 0], [1, 0]])
    rows = inverse_rows(target, transition, dtype=torch.float64)
    assert rows.shape == (2, 5, 2)
    torch.testing.assert_close(rows[0, :, 0], inverse[3])
    torch.testing.assert_close(rows[1, :, 1], inverse[0])


@pytest.mark.parametrize(
    ("transition", "settings", "sentence"),
    [
        (torch.full((3, 3), 1 / 3), {}, "condition number inf"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.5]]), {}, "condition number inf"),
        (symmetric(3, 2 / 3 - 1e-12, dtype=torch.float64), {"max_condition": 1e6}, "past the bound 1e[+]06"),
        (symmetric(2, 0.4), {"max_condition": 4.9}, "condition number 5, past the bound 4.9"),
    ],
)
def test_a_transition_that_cannot_be_inverted_is_refused(transition, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        invert_transition(transition, **settings)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((torch.zeros(2, 3), torch.zeros(2).int(), torch.eye(3)), TypeError, "int64.*int32"),
        ((torch.zeros(2, 3), torch.tensor([0, 3]), torch.eye(3)), ValueError, "label 3 but there are 3 classes"),
        ((torch.zeros(2, 3), torch.full((2, 3), 0.5), torch.eye(3)), ValueError, "sums to 1.5"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), torch.eye(4)), ValueError, r"\(3, 3\), got \(4, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), torch.eye(3, device="meta")), ValueError, "on meta.*on cpu"),
        ((torch.zeros(2, 2), torch.zeros(2).long(), torch.full((2, 2), 0.5)), ValueError, "condition number inf"),
    ],
)
def test_refuses_in_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        backward_cross_entropy(*arguments)
    assert str(caught.value).endswith(".")
