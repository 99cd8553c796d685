"""Each formula against a NumPy reference written label by label from the papers' definitions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import losses as fl
from noisylightning.functional.tempered import bi_tempered_loss, log_tempered_softmax

Real = np.longdouble  # the reference is computed with more digits than it is compared to


def log_p_of(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def one_hot(j, classes):
    return np.eye(classes, dtype=Real)[j]


def over_outputs(term):
    """The mean over the outputs of a margin loss whose targets are 0 and 1."""
    return lambda outputs, j: np.mean([term(y * v) for y, v in zip(one_hot(j, len(outputs)), outputs, strict=True)])


def logistic(v):
    return 1 / (1 + np.exp(-v)) if v >= 0 else np.exp(v) / (1 + np.exp(v))


def cross_entropy(target, log_p):
    return -sum(q * lp for q, lp in zip(target, log_p, strict=True) if q != 0)


def reverse_cross_entropy(p, j, log_zero):
    return -sum(p_k * (0 if k == j else log_zero) for k, p_k in enumerate(p))


def tempered_log(x, t):
    return np.log(x) if t == 1 else (x ** (1 - t) - 1) / (1 - t)


def tempered_softmax(z, t):
    """The normaliser found by halving an interval; p_k = exp_t(z_k - normaliser)."""
    if t == 1:
        return np.exp(log_p_of(z))

    def p_of(normaliser):
        return (1 + (1 - t) * (z - normaliser)) ** (1 / (1 - Real(t)))

    low, high = z.max(), z.max() + tempered_log(Real(len(z)) ** -1, t) * -1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if p_of(middle).sum() > 1 else (low, middle)
    return p_of((low + high) / 2)


def bregman_divergence(target, p, t):
    def term(y, q):
        return (y * (tempered_log(y, t) - tempered_log(q, t)) if y > 0 else 0) - (y ** (2 - t) - q ** (2 - t)) / (2 - t)

    return sum(term(y, q) for y, q in zip(target, p, strict=True))


EMA = np.array([[0.2, 0.1, 0.3, 0.05], [0.0, 0.0, 0.0, 0.0], [0.9, 0.0, 0.05, 0.04]])


def early_learning(z, j, n):
    p = np.clip(np.exp(log_p_of(z)), 1e-4, 1 - 1e-4)
    return -log_p_of(z)[j] + 3 * np.log(1 - (p * EMA[n % 3]).sum())


# name: (torch: logits -> vector, NumPy: (z, label, row) -> loss)
FORMULAE = {
    "mean_absolute_error": (
        lambda z: fl.mean_absolute_error(z.log_softmax(1)),
        lambda z, j, n: np.abs(np.exp(log_p_of(z)) - one_hot(j, len(z))).sum(),
    ),
    "reverse_cross_entropy": (
        lambda z: fl.reverse_cross_entropy(z.log_softmax(1), -6.0),
        lambda z, j, n: reverse_cross_entropy(np.exp(log_p_of(z)), j, -6),
    ),
    "symmetric_cross_entropy": (
        lambda z: fl.symmetric_cross_entropy(z.log_softmax(1), 0.3, 0.7),
        lambda z, j, n: (
            Real(0.3) * cross_entropy(one_hot(j, len(z)), log_p_of(z))
            + Real(0.7) * reverse_cross_entropy(np.exp(log_p_of(z)), j, -4)
        ),
    ),
    "generalized_cross_entropy": (
        lambda z: fl.generalized_cross_entropy(z.log_softmax(1), 0.7),
        lambda z, j, n: (1 - np.exp(log_p_of(z))[j] ** Real(0.7)) / Real(0.7),
    ),
    "truncated_generalized_cross_entropy": (
        lambda z: fl.truncated_generalized_cross_entropy(z.log_softmax(1), 0.7, 0.3),
        lambda z, j, n: (1 - max(np.exp(log_p_of(z))[j], Real(0.3)) ** Real(0.7)) / Real(0.7),
    ),
    "focal_loss": (
        lambda z: fl.focal_loss(z.log_softmax(1), 0.5),
        lambda z, j, n: -((1 - np.exp(log_p_of(z))[j]) ** Real(0.5)) * log_p_of(z)[j],
    ),
    "square_loss": (
        lambda z: fl.square_loss(z.log_softmax(1)),
        lambda z, j, n: ((np.exp(log_p_of(z)) - one_hot(j, len(z))) ** 2).sum(),
    ),
    "savage_loss": (
        lambda z: fl.savage_loss(z.log_softmax(1)),
        lambda z, j, n: over_outputs(lambda v: 1 / (1 + np.exp(2 * v)) ** 2)(np.exp(log_p_of(z)), j),
    ),
    "soft_bootstrap": (
        lambda z: fl.soft_bootstrap(z.log_softmax(1), 0.95),
        lambda z, j, n: cross_entropy(Real(0.95) * one_hot(j, len(z)) + Real(0.05) * np.exp(log_p_of(z)), log_p_of(z)),
    ),
    "hard_bootstrap": (
        lambda z: fl.hard_bootstrap(z.log_softmax(1), 0.8),
        lambda z, j, n: cross_entropy(
            Real(0.8) * one_hot(j, len(z)) + Real(0.2) * one_hot(z.argmax(), len(z)), log_p_of(z)
        ),
    ),
    "normalized_cross_entropy": (
        lambda z: fl.normalized_cross_entropy(z.log_softmax(1)),
        lambda z, j, n: (
            cross_entropy(one_hot(j, len(z)), log_p_of(z))
            / sum(cross_entropy(one_hot(k, len(z)), log_p_of(z)) for k in range(len(z)))
        ),
    ),
    "label_smoothing": (
        lambda z: fl.label_smoothing(z.log_softmax(1), 0.1),
        lambda z, j, n: cross_entropy(Real(0.9) * one_hot(j, len(z)) + Real(0.1) / len(z), log_p_of(z)),
    ),
    "negative_label_smoothing": (
        lambda z: fl.label_smoothing(z.log_softmax(1), -2.0),
        lambda z, j, n: cross_entropy(3 * one_hot(j, len(z)) - Real(2) / len(z), log_p_of(z)),
    ),
    "early_learning_regularization": (
        lambda z: fl.early_learning_regularization(
            z.log_softmax(1), torch.tensor(EMA, dtype=z.dtype)[torch.arange(len(z)) % 3]
        ),
        early_learning,
    ),
    "unhinged_loss": (fl.unhinged_loss, lambda z, j, n: over_outputs(lambda v: 1 - v)(z, j)),
    "sigmoid_loss": (fl.sigmoid_loss, lambda z, j, n: over_outputs(lambda v: logistic(-v))(z, j)),
    "ramp_loss": (fl.ramp_loss, lambda z, j, n: over_outputs(lambda v: min(1, max(0, 1 - v)))(z, j)),
    "bi_tempered_loss": (
        lambda z: bi_tempered_loss(z, 0.3, 2.5),
        lambda z, j, n: bregman_divergence(one_hot(j, len(z)), tempered_softmax(z, 2.5), 0.3),
    ),
    "bi_tempered_loss_log": (
        lambda z: bi_tempered_loss(z, 1.0, 1.2),
        lambda z, j, n: bregman_divergence(one_hot(j, len(z)), tempered_softmax(z, 1.2), 1),
    ),
}
all_formulae = pytest.mark.parametrize("name", FORMULAE)


def reference(name, logits):
    """The vector of losses of each row, label by label."""
    rows = [
        [FORMULAE[name][1](row, j, n) for j in range(len(row))]
        for n, row in enumerate(logits.double().numpy().astype(Real))
    ]
    return torch.tensor(np.array(rows, dtype=np.float64))


@all_formulae
@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]), seed=st.integers(0, 10_000))
def test_formula_agrees_with_numpy(name, scale, seed):
    logits = scale * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(FORMULAE[name][0](logits), reference(name, logits), rtol=1e-12, atol=1e-12)


EXTREME = torch.tensor(
    [
        [1e4, -1e4, 0.0, 5.0],
        [-1e4, -1e4, 1e4, 1e4],
        [1e4, 1e4, 1e4, 1e4],
        [-1e4, 1e4, 9999.0, -9999.0],
        [0.0, 0.0, -1e4, 0.5],
        [40.0, 0.0, 0.0, 0.0],
    ],
    dtype=torch.float64,
)


@all_formulae
def test_extreme_logits(name):
    torch.testing.assert_close(FORMULAE[name][0](EXTREME), reference(name, EXTREME), rtol=1e-12, atol=1e-12)


@all_formulae
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_extreme_logits_have_finite_values_and_gradients(name, dtype):
    logits = EXTREME.to(dtype)
    if name in {"unhinged_loss", "sigmoid_loss", "ramp_loss"} or name.startswith("bi_tempered"):
        formula = FORMULAE[name][0]
    else:  # what the modules do with half precision: widen, then log-softmax
        formula = lambda z: FORMULAE[name][0](z.float())  # noqa: E731
    narrow = logits.clone().requires_grad_()
    wide = logits.double().requires_grad_()
    for label in range(4):
        value, exact = formula(narrow)[:, label], FORMULAE[name][0](wide)[:, label]
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
        (slope,) = torch.autograd.grad(value.sum(), narrow)
        (exact_slope,) = torch.autograd.grad(exact.sum(), wide)
        assert exact_slope.isfinite().all()
        assert slope.isfinite().all()
        eps = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(slope.double(), exact_slope, rtol=eps, atol=eps)


@all_formulae
def test_gradcheck(name):
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(FORMULAE[name][0], logits)
    assert torch.autograd.gradgradcheck(FORMULAE[name][0], logits)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_gradient_at_certainty(gamma):
    log_p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    fl.focal_loss(log_p, gamma).sum().backward()
    expected = -1.0 if gamma == 0 else 0.0
    torch.testing.assert_close(log_p.grad, torch.full_like(log_p, expected), rtol=0, atol=1e-80)


@pytest.mark.parametrize(
    "formula",
    [
        fl.mean_absolute_error,
        fl.symmetric_cross_entropy,
        lambda log_p: fl.symmetric_cross_entropy(log_p, alpha=0.0),
        fl.generalized_cross_entropy,
        fl.truncated_generalized_cross_entropy,
        lambda log_p: fl.focal_loss(log_p, 0.5),
        fl.focal_loss,
        fl.square_loss,
        fl.savage_loss,
        fl.soft_bootstrap,
        lambda log_p: fl.soft_bootstrap(log_p, 0.0),
        fl.hard_bootstrap,
        lambda log_p: fl.hard_bootstrap(log_p, 0.0),
        fl.normalized_cross_entropy,
        lambda log_p: fl.label_smoothing(log_p, 0.0),
        lambda log_p: fl.label_smoothing(log_p, -1.0),
        lambda log_p: fl.early_learning_regularization(log_p, torch.tensor([[0.3, 0.3, 0.0]])),
    ],
)
def test_class_of_probability_zero(formula):
    """As in p T where T has a column of zeros: no NaN, and only that label's loss may be infinite."""
    log_p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log().requires_grad_()
    losses = formula(log_p)
    assert losses[:, :2].isfinite().all()
    assert not losses.isnan().any()
    (slope,) = torch.autograd.grad(losses.sum(), log_p)
    assert not slope.isnan().any()


def test_label_smoothing_of_a_class_of_probability_zero_is_infinite():
    log_p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert (fl.label_smoothing(log_p, 0.1) == math.inf).all()


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.sampled_from([1.0, 1.0001, 1.2, 2.0, 4.0, 8.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    classes=st.sampled_from([2, 3, 10, 1000]),
    seed=st.integers(0, 10_000),
)
def test_tempered_softmax_sums_to_one(temperature, scale, classes, seed):
    logits = scale * torch.randn(4, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    total = log_tempered_softmax(logits, temperature).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    total = log_tempered_softmax(logits.float(), temperature).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=2e-6, atol=0)


def test_tempered_softmax_many_classes_far_apart():
    logits = -torch.logspace(-3, 4, 20_000, dtype=torch.float64)[None]
    for temperature in (1.5, 2.0, 4.0):
        torch.testing.assert_close(
            log_tempered_softmax(logits, temperature).exp().sum().item(), 1.0, rtol=1e-12, atol=0
        )


def test_label_loss_is_nll_loss_with_weights_and_ignored_labels():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(6, 4, 5, generator=generator).log_softmax(1)
    target = torch.randint(4, (6, 5), generator=generator)
    target[0, 0] = -100
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0])
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            fl.label_loss(-log_p, target, weight=weight, reduction=reduction),
            F.nll_loss(log_p, target, weight=weight, reduction=reduction),
        )


def test_label_loss_of_a_soft_target_is_that_of_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 5, generator=generator)
    target = torch.randn(6, 4, 5, generator=generator).softmax(1)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0])
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(logits, target, weight=weight, reduction=reduction)
        if reduction == "mean":  # cross_entropy divides by the number of samples, not of positions
            expected = F.cross_entropy(logits, target, weight=weight, reduction="none").mean()
        actual = fl.label_loss(-logits.log_softmax(1), target, weight=weight, reduction=reduction)
        torch.testing.assert_close(actual, expected)


def test_label_loss_of_a_certain_label_with_infinite_losses_elsewhere():
    losses = torch.tensor([[0.0, math.inf]])
    assert fl.label_loss(losses, torch.tensor([[1.0, 0.0]])) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fl.soft_bootstrap(x, 1.5), r"^beta must lie in \[0, 1\], got 1.5: it is the share"),
        (lambda x: fl.hard_bootstrap(x, -0.1), r"^beta must lie in \[0, 1\], got -0.1"),
        (lambda x: fl.hard_bootstrap(x, math.nan), r"^beta must lie in \[0, 1\], got nan"),
        (lambda x: fl.generalized_cross_entropy(x, 0.0), r"^q must lie in \(0, 1\], got 0.0"),
        (lambda x: fl.truncated_generalized_cross_entropy(x, 0.7, 1.0), r"^k must lie in \(0, 1\), got 1.0"),
        (lambda x: fl.reverse_cross_entropy(x, 0.0), r"^log_zero must lie in \(-inf, 0\), got 0.0"),
        (lambda x: fl.symmetric_cross_entropy(x, -1.0), r"^alpha must lie in \[0, inf\), got -1.0"),
        (lambda x: fl.symmetric_cross_entropy(x, 1.0, math.inf), r"^beta must lie in \[0, inf\), got inf"),
        (lambda x: fl.focal_loss(x, -1.0), r"^gamma must lie in \[0, inf\), got -1.0"),
        (lambda x: fl.label_smoothing(x, 1.1), r"^rate must lie in \(-inf, 1\], got 1.1"),
        (lambda x: fl.early_learning_regularization(x, x.exp(), -1.0), r"^strength must lie in \[0, inf\), got -1.0"),
        (lambda x: fl.early_learning_regularization(x, x.exp(), 1.0, 0.5), r"^floor must lie in \[0, 0.5\), got 0.5"),
        (lambda x: log_tempered_softmax(x, 0.5), r"^temperature must lie in \[1, inf\), got 0.5"),
        (lambda x: bi_tempered_loss(x, 1.5, 1.0), r"^t1 must lie in \[0, 1\], got 1.5"),
        (lambda x: bi_tempered_loss(x, 0.5, 0.9), r"^t2 must lie in \[1, inf\), got 0.9"),
        (lambda x: fl.label_loss(x, torch.tensor([0, 1])), "^target has shape"),
        (lambda x: fl.label_loss(x, torch.ones(1, 3)), "^a torch.float32 target"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([[0.25, 0.75]]).log())
