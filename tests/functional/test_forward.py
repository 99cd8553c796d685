"""Forward-corrected cross-entropy: the formula, its conventions, its exactness and its derivatives."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import forward_cross_entropy, noisy_log_likelihood, noisy_log_posterior
from noisylightning.kernels import cross_entropy as kernels

pytestmark = pytest.mark.usefixtures("way")

SHAPES = [(6, 4), (3, 4, 5), (2, 4, 3, 2)]
REDUCTIONS = ["mean", "sum", "none"]


def random_transition(classes, seed=0, zeros=0.3):
    """Row-stochastic, with exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    entries = torch.rand(classes, classes, generator=generator, dtype=torch.float64)
    kept = torch.rand(classes, classes, generator=generator) > zeros
    entries = entries * kept + torch.eye(classes, dtype=torch.float64)
    return entries / entries.sum(1, keepdim=True)


def problem(shape=(6, 4), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)
    return logits, target, random_transition(shape[1], seed).to(dtype)


def soft(target, classes, seed=0):
    noise = torch.rand(*target.shape, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (F.one_hot(target, classes) + noise).div(1 + noise.sum(-1, keepdim=True)).movedim(-1, 1)


def reference(logits, target, transition, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The formula of the paper in NumPy, one label at a time."""
    logits, target, transition = np.moveaxis(logits, 1, -1), np.asarray(target), np.asarray(transition)
    classes = logits.shape[-1]
    weight = np.ones(classes) if weight is None else np.asarray(weight)
    is_soft = target.dtype.kind == "f"
    target = np.moveaxis(target, 1, -1) if is_soft else target
    losses, divisor = np.zeros(logits.shape[:-1]), 0.0
    for place in np.ndindex(*losses.shape):
        p = np.exp(logits[place] - logits[place].max())
        nll = -np.log((p / p.sum()) @ transition)
        if is_soft:
            q = target[place]
            divisor += 1
        elif target[place] == ignore_index:
            continue
        else:
            q = np.eye(classes)[target[place]]
            divisor += weight[target[place]]
        q = (1 - label_smoothing) * q + label_smoothing / classes
        losses[place] = (q * weight * nll).sum()
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / divisor if divisor else np.nan}[reduction]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_graph_may_be_passed_twice_whatever_became_of_the_first_gradient(dtype, reduction):
    logits, target, transition = problem(dtype=dtype)
    logits.requires_grad_()
    loss = forward_cross_entropy(logits, target, transition, reduction=reduction)
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    logits.grad.zero_()
    loss.backward()
    torch.testing.assert_close(logits.grad, first, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_several_derivatives_at_once_are_those_one_by_one(reduction):
    logits, target, transition = problem()
    together, apart = (
        torch.autograd.functional.jacobian(
            lambda z: forward_cross_entropy(z, target, transition, reduction=reduction), logits, vectorize=vectorize
        )
        for vectorize in (True, False)
    )
    torch.testing.assert_close(together, apart)


def test_logits_may_be_overwritten_after_the_loss_as_with_cross_entropy():
    logits, target, transition = problem()
    leaf = logits.clone().requires_grad_()
    scores = leaf * 1.0
    loss = forward_cross_entropy(scores, target, transition)
    with torch.no_grad():
        scores.zero_()
    loss.backward()
    expected = torch.func.grad(lambda z: forward_cross_entropy(z, target, transition))(logits)
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["index", "ignored", "soft"])
def test_agrees_with_numpy(shape, kind):
    logits, target, _ = problem(shape)
    transition = random_transition(4, zeros=0.0)  # smoothing asks for the likelihood of every label
    if kind == "ignored":
        target[0] = -1
    elif kind == "soft":
        target = soft(target, 4)
    some = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    for reduction, weight, smoothing in itertools.product(REDUCTIONS, (None, some), (0.0, 0.2)):
        settings = {"ignore_index": -1, "reduction": reduction, "label_smoothing": smoothing}
        got = forward_cross_entropy(logits, target, transition, weight=weight, **settings)
        expected = reference(logits.numpy(), target, transition, weight, **settings)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["index", "ignored", "soft"])
def test_identity_is_cross_entropy_in_value_and_gradient(shape, kind):
    logits, target, _ = problem(shape)
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
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        identity = torch.eye(4, dtype=torch.float64)
        got = forward_cross_entropy(ours, target, identity, weight=weight, **settings)
        expected = F.cross_entropy(theirs, target, weight, **settings)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        got.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_one_sample_without_a_batch():
    logits, target, transition = problem()
    for reduction in REDUCTIONS:
        got = forward_cross_entropy(logits[0], target[0], transition, reduction=reduction)
        torch.testing.assert_close(got, forward_cross_entropy(logits[:1], target[:1], transition))
        assert got.shape == ()


def test_an_empty_batch_and_an_all_ignored_batch_follow_cross_entropy():
    transition = torch.eye(3)
    for logits, target in (
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.full((2,), -100)),
    ):
        for reduction in REDUCTIONS:
            expected = F.cross_entropy(logits, target, reduction=reduction)
            got = forward_cross_entropy(logits, target, transition, reduction=reduction)
            torch.testing.assert_close(got, expected, equal_nan=True)


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 7), scale=st.floats(0, 30))
def test_the_fast_way_and_the_exact_way_agree(seed, classes, scale):
    logits, target, transition = problem((5, classes), seed)
    fast, exact = (scale * logits).requires_grad_(), (scale * logits).requires_grad_()
    one = kernels._LogLikelihood.apply(fast, target, transition.t(), False)
    two = kernels._exact(exact, target, transition.t(), False)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(one.sum(), fast)[0], torch.autograd.grad(two.sum(), exact)[0], rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [4, 20])
def test_pieces_do_not_show(monkeypatch, classes, dtype):
    logits, target, transition = problem((23, classes), dtype=dtype)
    logits.requires_grad_()
    whole = noisy_log_likelihood(logits, target, transition)
    slope = torch.autograd.grad(whole.sum(), logits)[0]
    monkeypatch.setattr(kernels, "PIECE", 3 * classes)
    pieces = noisy_log_likelihood(logits, target, transition)
    error = {"rtol": 1e-14, "atol": 1e-17} if classes < kernels.VECTOR else {"rtol": 0, "atol": 0}  # vectors are cut
    if dtype == torch.bfloat16:
        error = {"rtol": 1e-2, "atol": 1e-5}
    torch.testing.assert_close(pieces, whole, **error)
    torch.testing.assert_close(torch.autograd.grad(pieces.sum(), logits)[0], slope, **error)


def log_sum_exp(values):
    """In Python integers and exact shifts: for logits that are far apart."""
    top = max(values)
    return top + float(np.log(sum(np.exp(np.float64(value - top)) for value in values)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_exact_where_probabilities_underflow(dtype, requires_grad):
    """Every combination of logits of +-1e4 with columns that have exact zeros: value and gradient."""
    transition = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.7, 0.3], [0.0, 1e-6, 1 - 1e-6]])
    rows = list(itertools.product([-1e4, 0.0, 30.0, 1e4], repeat=3))
    samples, labels = zip(*itertools.product(rows, range(3)), strict=True)
    logits = torch.tensor(samples, dtype=dtype).requires_grad_(requires_grad)
    values = noisy_log_likelihood(logits, torch.tensor(labels), transition)
    stored = logits.detach().double().tolist()
    log_t = transition.double().log().tolist()
    expected = [
        log_sum_exp([z + log_t[i][label] for i, z in enumerate(sample)]) - log_sum_exp(sample)
        for sample, label in zip(stored, labels, strict=True)
    ]
    torch.testing.assert_close(values.detach(), torch.tensor(expected, dtype=values.dtype), rtol=2e-6, atol=1e-6)
    if requires_grad:
        values.sum().backward()
        posterior = (logits.detach().double() + transition.double().log().t()[list(labels)]).softmax(1)
        slope = posterior - logits.detach().double().softmax(1)
        tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-2
        torch.testing.assert_close(logits.grad.double(), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_exact_where_probabilities_underflow_and_no_gradient_is_wanted(mode, reduction):
    transition = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    with mode():
        logits = torch.tensor([[1e4, 0.0], [0.0, -1e4]]) @ torch.eye(2)  # made in that mode, as a network's are
        values = forward_cross_entropy(logits, torch.tensor([1, 0]), torch.eye(2), reduction=reduction)
        corrected = forward_cross_entropy(logits, torch.tensor([1, 0]), transition, reduction=reduction)
    expected, expected_corrected = torch.tensor([1e4, 0.0]), -torch.tensor([0.1, 0.9]).log()
    if reduction == "mean":
        expected, expected_corrected = expected.mean(), expected_corrected.mean()
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(corrected, expected_corrected)


def test_the_posterior_is_exact_where_the_product_underflows():
    transition = random_transition(4, seed=3)
    rows = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=4)), requires_grad=True)
    log_q = noisy_log_posterior(rows, transition.float())
    expected = torch.stack(
        [noisy_log_likelihood(rows, torch.full((len(rows),), j), transition.float()) for j in range(4)], 1
    )
    torch.testing.assert_close(log_q, expected)
    slope = torch.autograd.grad(log_q.sum(), rows, retain_graph=True)[0]
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), rows)[0], atol=1e-5, rtol=1e-5)
    ones = log_q.exp().sum(1)
    torch.testing.assert_close(ones, torch.ones_like(ones))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_posterior_is_the_product(shape):
    logits, _, transition = problem(shape)
    expected = torch.einsum("nc...,ck->nk...", logits.softmax(1), transition).log()
    torch.testing.assert_close(noisy_log_posterior(logits, transition), expected)


def test_an_impossible_label_is_infinite_or_floored_as_asked():
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for target in (torch.tensor([1, 0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])):
        logits = torch.tensor([[3.0, -1.0], [0.5, 0.2]], requires_grad=True)
        loss = forward_cross_entropy(logits, target, transition, reduction="none")
        assert loss.tolist() == [torch.inf, 0.0]
        floored = forward_cross_entropy(logits, target, transition, reduction="none", floor=1e-6)
        torch.testing.assert_close(floored, torch.tensor([-np.log(1e-6), 0.0], dtype=torch.float32))
        for value in (loss, floored):
            slope = torch.autograd.grad(value.sum(), logits)[0]
            torch.testing.assert_close(slope, torch.zeros_like(slope))


def test_an_ignored_impossible_label_costs_nothing():
    transition = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = forward_cross_entropy(logits, torch.tensor([-100, 1]), transition)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(2, 2))


def test_nan_logits_stay_nan_and_touch_no_other_sample():
    logits = torch.zeros(2, 3)
    logits[0, 1] = torch.nan
    values = noisy_log_likelihood(logits.requires_grad_(), torch.tensor([0, 0]), torch.eye(3))
    assert values[0].isnan()
    assert not values[1].isnan()


@pytest.mark.parametrize("kind", ["index", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_derivatives_of_first_and_second_order(kind, smoothing):
    logits, target, transition = problem((3, 4))
    if kind == "soft":
        target = soft(target, 4)
    transition = (transition + 0.1) / 1.4  # away from the border, where a difference quotient would step outside
    inputs = (logits.requires_grad_(), transition.requires_grad_())

    def loss(logits, transition):
        return forward_cross_entropy(logits, target, transition, reduction="none", label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    fixed = transition.detach()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, fixed), inputs[:1])
    assert torch.autograd.gradgradcheck(lambda logits: loss(logits, fixed), inputs[:1])


def test_gradient_to_a_transition_with_zeros_is_p_over_q():
    logits, target, _ = problem((5, 3))
    transition = torch.eye(3, dtype=torch.float64).requires_grad_()
    noisy_log_likelihood(logits, target, transition).sum().backward()
    p = logits.softmax(1)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for row, label in zip(p, target.tolist(), strict=True):
        expected[:, label] += row / row[label]
    torch.testing.assert_close(transition.grad, expected)


def test_functorch_agrees_with_autograd():
    logits, target, transition = problem((5, 4))
    each = torch.func.vmap(torch.func.grad(forward_cross_entropy), in_dims=(0, 0, None))(logits, target, transition)
    leaf = logits.clone().requires_grad_()
    forward_cross_entropy(leaf, target, transition, reduction="sum").backward()
    torch.testing.assert_close(each, leaf.grad)
    values = torch.func.vmap(forward_cross_entropy, in_dims=(0, 0, None))(logits, soft(target, 4), transition)
    torch.testing.assert_close(values, forward_cross_entropy(logits, soft(target, 4), transition, reduction="none"))
    hessian = torch.func.hessian(forward_cross_entropy)(logits[0], target[0], transition)
    q = (logits[0] + transition[:, target[0]].log()).softmax(0)
    p = logits[0].softmax(0)
    torch.testing.assert_close(hessian, (p.diag() - p.outer(p)) - (q.diag() - q.outer(q)))


@pytest.mark.parametrize("kind", ["index", "ignored", "soft"])
def test_compiles_without_a_graph_break(kind):
    logits, target, transition = problem((6, 4), dtype=torch.float32)
    logits[0] *= 1e4
    if kind == "ignored":
        target[1] = -100
    if kind == "soft":
        target = soft(target, 4).float()
    compiled = torch.compile(forward_cross_entropy, fullgraph=True, backend="aot_eager")
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(one, target, transition).backward()
    forward_cross_entropy(two, target, transition).backward()
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    logits, target, transition = problem((6, 4), dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    expected = forward_cross_entropy(half.detach().float(), target, transition)
    with torch.autocast("cpu", dtype):
        got = forward_cross_entropy(half, target, transition)
        whole = noisy_log_posterior(half, transition)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole, noisy_log_posterior(half.detach().float(), transition), rtol=1e-6, atol=1e-6)
    got.backward()
    assert half.grad.dtype == dtype


def test_no_gradient_saves_no_buffer():
    logits, target, transition = problem()
    assert noisy_log_likelihood(logits, target, transition).grad_fn is None


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (
            (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2).long(), torch.eye(3)),
            TypeError,
            "logits must be",
        ),
        ((torch.tensor(1.0), torch.tensor(0), torch.eye(3)), ValueError, "no class dimension"),
        ((torch.zeros(2, 3), torch.zeros(2).int(), torch.eye(3)), TypeError, "int64.*int32"),
        ((torch.zeros(2, 3), torch.zeros(3).long(), torch.eye(3)), ValueError, r"\(3,\).*need \(2,\)"),
        ((torch.zeros(2, 3), torch.zeros(2), torch.eye(3)), ValueError, r"class indices as int64"),
        ((torch.zeros(2, 3), torch.tensor([0, 3]), torch.eye(3)), ValueError, "label 3 but there are 3 classes"),
        ((torch.zeros(2, 3), torch.tensor([0, -1]), torch.eye(3)), ValueError, "label -1 but"),
        ((torch.zeros(2, 3), torch.full((2, 3), 0.5), torch.eye(3)), ValueError, "sums to 1.5"),
        ((torch.zeros(1, 2), torch.tensor([[1.5, -0.5]]), torch.eye(2)), ValueError, "-0.5"),
        ((torch.zeros(1, 2), torch.tensor([[torch.nan, 0.5]]), torch.eye(2)), ValueError, "nan"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), torch.eye(4)), ValueError, r"\(3, 3\), got \(4, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), torch.eye(3).long()), TypeError, "floating tensor, got"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), torch.eye(3, device="meta")), ValueError, "on meta.*on cpu"),
    ],
)
def test_refuses_in_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        forward_cross_entropy(*arguments)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing.*1.5"),
        ({"floor": 1.0}, r"floor.*\[0, 1\)"),
        ({"weight": torch.ones(2)}, r"weight has shape \(2,\)"),
        ({"reduction": "average"}, "reduction.*average"),
    ],
)
def test_refuses_wrong_settings(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        forward_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), torch.eye(3), **setting)
