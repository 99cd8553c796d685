"""The compiled kernel: its arithmetic against float64, every remainder of its vectors, threads, and what it leaves."""

import math
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisylightning.corrections import BackwardCorrection, ForwardCorrection
from noisylightning.functional import forward_cross_entropy, noisy_log_likelihood
from noisylightning.kernels import fused
from noisylightning.kernels.cross_entropy import log_likelihood, mean_cross_entropy
from noisylightning.losses import CrossEntropy

needs_kernel = pytest.mark.skipif(fused.kernel is None, reason="the package was installed without a C++ compiler")
EPS = torch.finfo(torch.float32).eps


def problem(samples, classes, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return logits, labels, torch.rand(classes, classes, generator=generator).softmax(1).t().contiguous()


def run(logits, labels, table, backward=False, factor=1.0):
    assert fused.serves(logits, labels, table)
    smallest = -math.inf if backward else fused.SMALLEST_LOG_SUM
    return fused.evaluate(logits, labels, table, backward, True, factor, smallest)


def reference(logits, labels, columns):
    p = logits.double().softmax(1)
    r = p * columns.double()[labels]
    q = r.sum(1)
    return q.log(), p, r / q.unsqueeze(1)


def test_the_kernel_is_there_where_a_compiler_is():
    assert fused.kernel is not None or shutil.which("c++") is None, "the kernel was not compiled: pip install -e ."


@needs_kernel
@given(st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from([0.1, 3.0, 20.0]))
@settings(max_examples=200, deadline=None)
def test_agrees_with_float64(samples, classes, seed, spread):
    logits, labels, columns = problem(samples, classes, seed, spread)
    log_q, slope, total = run(logits, labels, columns)
    expected, p, r = reference(logits, labels, columns)
    torch.testing.assert_close(log_q.double(), expected, rtol=EPS, atol=4 * EPS)
    depth = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)  # rounded before the exponential is taken
    lost = 2e-38 * (1 + 1 / expected.exp().unsqueeze(1))  # what counts as zero, before it is divided by a sum
    assert ((slope - (p - r)).abs() <= EPS * (8 + depth) * (p + r) + lost).all()
    assert total == pytest.approx(log_q.double().sum().item(), rel=1e-12)


@needs_kernel
@given(st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from([0.1, 3.0, 20.0]))
@settings(max_examples=200, deadline=None)
def test_backward_agrees_with_float64(samples, classes, seed, spread):
    logits, labels, _ = problem(samples, classes, seed, spread)
    inverse = 2 * torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed))
    values, slope, total = run(logits, labels, inverse, backward=True)
    log_p, weights = logits.double().log_softmax(1), inverse.double()[labels]
    scale = (weights.abs() * (1 + log_p.abs())).sum(1)
    assert ((values - (weights * log_p).sum(1)).abs() <= 16 * EPS * scale).all()
    expected = log_p.exp() * weights.sum(1, keepdim=True) - weights
    assert ((slope - expected).abs() <= 16 * EPS * (1 + scale.unsqueeze(1))).all()
    assert total == pytest.approx(values.double().sum().item(), rel=1e-12, abs=1e-12)


@needs_kernel
@pytest.mark.parametrize("classes", [1000, 20_011])
def test_many_classes_add_up(classes):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, classes, generator=generator)
    columns = torch.rand(1, classes, generator=generator).expand(classes, -1)
    labels = torch.zeros(4, dtype=torch.int64)
    log_q = fused.evaluate(logits, labels, columns, False, False, 1.0, -60.0)[0]  # reads column 0 only
    expected = (logits.double().softmax(1) * columns[0]).sum(1).log()
    torch.testing.assert_close(log_q.double(), expected, rtol=0, atol=16 * EPS)


@needs_kernel
def test_the_exponential_is_good_to_two_units_in_the_last_place():
    x = torch.linspace(-87, 0, 100_001)
    logits = torch.stack([torch.zeros_like(x), x], dim=1)
    slope = run(logits, torch.zeros(len(x), dtype=torch.int64), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))[1]
    assert slope.isnan().all()  # (p T)_y = 0: the callers repair what is not above the smallest sum
    slope = run(logits, torch.zeros(len(x), dtype=torch.int64), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))[1]
    p = torch.exp(x.double()) / (1 + torch.exp(x.double()))
    assert ((slope[:, 1] - p).abs() <= 3 * EPS * p).all()


@needs_kernel
@pytest.mark.parametrize("backward", [False, True])
def test_bfloat16_is_the_float32_result_rounded_once(backward):
    logits, labels, columns = problem(64, 53)
    half = logits.to(torch.bfloat16)
    log_q, slope, total = run(half, labels, columns, backward)
    wide_log_q, wide_slope, wide_total = run(half.float(), labels, columns, backward)
    assert slope.dtype == torch.bfloat16
    assert torch.equal(slope, wide_slope.to(torch.bfloat16))
    assert torch.equal(log_q, wide_log_q)
    assert total == wide_total


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 19, 20])
def test_a_logit_that_is_no_number_spoils_its_own_sample_only(dtype, wrong, place):
    logits, labels, columns = problem(3, 21)
    logits = logits.to(dtype)
    fine = run(logits, labels, columns)
    logits[1, place] = wrong
    log_q, slope, total = run(logits, labels, columns)
    for sample in (0, 2):
        assert torch.equal(log_q[sample], fine[0][sample])
        assert torch.equal(slope[sample], fine[1][sample])
    if wrong == -math.inf:  # a class that cannot be: p = 0
        expected, p, r = reference(logits, labels, columns)
        assert log_q[1].item() == pytest.approx(expected[1].item(), abs=1e-6)
        assert slope[1, place] == 0
        torch.testing.assert_close(slope[1].double(), (p - r)[1], rtol=2e-2, atol=1e-6)
    else:
        assert log_q[1].isnan()
        assert math.isnan(total)
        assert slope[1].isnan().all()


@needs_kernel
@pytest.mark.parametrize("backward", [False, True])
def test_the_slope_is_multiplied_by_the_factor(backward):
    logits, labels, columns = problem(5, 37)
    once, quarter = (run(logits, labels, columns, backward, factor)[1] for factor in (1, 0.25))
    assert torch.equal(0.25 * once, quarter)


@pytest.mark.parametrize("kernel", [pytest.param(fused.kernel, marks=needs_kernel), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_leaves_out_an_impossible_class_of_weight_zero(monkeypatch, dtype, kernel):
    monkeypatch.setattr(fused, "kernel", kernel)
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, -math.inf], [0.0, 1.0, 2.0]]).to(dtype).requires_grad_()
    inverse = torch.tensor([[1.25, -0.25, 0.0], [-0.5, 1.25, 0.25], [0.0, 0.0, 1.0]])
    values = log_likelihood(logits, torch.tensor([0, 1, 2]), inverse, backward=True)
    log_p = logits.detach().float().log_softmax(1)
    torch.testing.assert_close(values[0], 1.25 * log_p[0, 0] - 0.25 * log_p[0, 1])
    assert values[1] == -math.inf
    torch.testing.assert_close(values[2], log_p[2, 2])
    slope = torch.autograd.grad(values[[0, 2]].sum(), logits)[0]
    torch.testing.assert_close(slope[0].float(), inverse[0] - log_p[0].exp(), rtol=1e-2, atol=1e-6)
    assert slope.isfinite().all()


@needs_kernel
@pytest.mark.parametrize("backward", [False, True])
def test_a_second_pass_gives_the_same_gradient_even_when_the_kernel_is_gone(monkeypatch, backward):
    """As when a hook on saved tensors gives back tensors that it does not serve."""
    logits, labels, columns = problem(6, 5)
    logits.requires_grad_()
    loss = mean_cross_entropy(logits, labels, columns, backward)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, logits, retain_graph=True)[0], first)
    monkeypatch.setattr(fused, "kernel", None)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], first)


@needs_kernel
def test_a_sum_that_may_have_lost_terms_is_told():
    logits = torch.tensor([[0.0, 0.0], [0.0, -44.0]])
    identity = torch.eye(2)
    assert run(logits, torch.tensor([0, 0]), identity)[2] == pytest.approx(math.log(0.5))
    assert math.isnan(run(logits, torch.tensor([0, 1]), identity)[2])


@needs_kernel
@pytest.mark.parametrize("label", [-1, -100, 4, 2**40])
def test_a_label_out_of_range_reads_nothing(label):
    logits, labels, columns = problem(3, 4)
    labels[1] = label
    with pytest.raises(IndexError, match="label is out of range"):
        run(logits, labels, columns)


@needs_kernel
def test_threads_change_no_bit():
    assert fused.PARALLEL_FOR or sys.platform == "win32"
    logits, labels, columns = problem(3001, 137)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(run(logits, labels, columns))
    finally:
        torch.set_num_threads(threads)
    (log_q, slope, total), (other_log_q, other_slope, other_total) = results
    assert torch.equal(log_q, other_log_q)
    assert torch.equal(slope, other_slope)
    assert total == other_total


def test_what_it_is_not_made_for_is_left_to_the_other_way():
    class Marked(torch.Tensor):
        pass

    logits, labels, columns = problem(6, 4)
    assert fused.serves(logits, labels, columns) == (fused.kernel is not None)
    assert fused.serves(nn.Parameter(logits), labels, columns) == (fused.kernel is not None)
    assert not fused.serves(logits.double(), labels, columns)
    assert not fused.serves(logits.half(), labels, columns)
    assert not fused.serves(logits, labels, columns.double())
    assert not fused.serves(logits, labels, columns.t())
    assert not fused.serves(logits.t().contiguous().t(), labels, columns)
    assert not fused.serves(logits, labels.repeat_interleave(2)[::2], columns)
    assert not fused.serves(logits, labels.int(), columns)
    assert not fused.serves(torch.complex(logits, logits).conj().imag.as_strided((6, 4), (4, 1)), labels, columns)
    assert not fused.serves(logits.as_subclass(Marked), labels, columns)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("kind", [ForwardCorrection, BackwardCorrection])
def test_with_the_kernel_and_without_it_losses_and_gradients_agree(monkeypatch, dtype, reduction, scale, kind):
    logits, labels, columns = problem(33, 21)
    logits = logits.to(dtype).requires_grad_()
    correction = kind(0.7 * torch.eye(21) + 0.3 * columns.t(), loss=CrossEntropy(reduction=reduction))

    def loss_and_gradient():
        loss = correction(logits, labels)
        return loss, torch.autograd.grad(scale * loss.sum(), logits)[0]

    loss, gradient = loss_and_gradient()
    monkeypatch.setattr(fused, "kernel", None)
    other_loss, other_gradient = loss_and_gradient()
    assert loss.dtype == other_loss.dtype == torch.float32
    assert gradient.dtype == other_gradient.dtype == dtype
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=1e-6)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gradient, other_gradient, rtol=tolerance, atol=1e-6 * scale)


@pytest.mark.parametrize("default", ["dtype", "device"])
def test_defaults_of_torch_do_not_reach_the_buffers(default):
    logits, labels, columns = problem(4, 5)
    expected = F.nll_loss((logits.softmax(1) @ columns.t()).log(), labels)
    slot = logits.requires_grad_()
    if default == "dtype":
        torch.set_default_dtype(torch.float64)
        try:
            values, loss = (
                noisy_log_likelihood(slot, labels, columns.t()),
                forward_cross_entropy(slot, labels, columns.t()),
            )
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with torch.device("meta"):
            values, loss = (
                noisy_log_likelihood(slot, labels, columns.t()),
                forward_cross_entropy(slot, labels, columns.t()),
            )
    for result in (-values.mean(), loss):
        assert result.is_cpu
        torch.testing.assert_close(result, expected)


@needs_kernel
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("function", [log_likelihood, mean_cross_entropy])
def test_other_derivatives_are_those_of_the_plain_formula(function, backward):
    logits, labels, columns = problem(4, 6)
    logits.requires_grad_()
    wide, table = logits.detach().double().requires_grad_(), columns.double()

    def hessian_product(z, t):
        first = torch.autograd.grad(function(z, labels, t, backward).sum(), z, create_graph=True)[0]
        return torch.autograd.grad((first * first.detach().cos()).sum(), z)[0]

    torch.testing.assert_close(
        hessian_product(logits, columns).double(), hessian_product(wide, table), rtol=1e-4, atol=1e-5
    )
    values = function(logits, labels, columns, backward)
    basis = torch.eye(max(1, values.numel())).reshape(-1, *values.shape)
    together = torch.autograd.grad(values, logits, basis, retain_graph=True, is_grads_batched=True)[0]
    apart = torch.stack([torch.autograd.grad(values, logits, row, retain_graph=True)[0] for row in basis])
    torch.testing.assert_close(together, apart)
    gradient = torch.func.grad(lambda z: function(z, labels, columns, backward).sum())(logits.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(values.sum(), logits)[0])
