"""Cross-entropy corrected by a dense T, for class indices, exact where softmax and matrix products underflow.

Two ways to the same number. ``exact_*`` are plain differentiable operations, shifted per sample so that nothing
underflows: they serve compilation, ``torch.func``, a T that wants a gradient, second derivatives, and accelerators.
The two :class:`torch.autograd.Function` are for eager CPU training with a fixed T: one buffer, which the backward pass
gives away as the gradient, filled sample by sample by a compiled kernel (:mod:`.fused`) or, where that does not serve,
in cache-sized pieces by steps of torch; the rare samples that underflow are repaired by the exact way.

Both read one row of a table per label, and ``backward`` says which correction it is: a column of T (forward), or a row
of ``T^-1`` (backward).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisylightning.kernels import fused
from noisylightning.tensors import expectation, log_softmax, values_readable

PIECE = 2**20  # entries worked on at a time: 4 MiB of float32, so that the steps find each other's results in the cache
VECTOR = 16  # over fewer classes than this torch's softmax goes number by number: ten times faster along the samples
LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32 and far above what any sum of probabilities can hide
# A sum of probabilities below this may have lost terms to underflow.
SMALLEST_SUM = {dtype: torch.finfo(dtype).tiny ** 0.75 for dtype in (torch.float32, torch.float64)}


def log_likelihood(logits: Tensor, labels: Tensor, table: Tensor, backward: bool = False) -> Tensor:
    """``log (p T)_y``, or, for backward correction, its unbiased counterpart ``sum_k (T^-1)_yk log p_k``.

    Args:
        logits: Shape ``(M, C)``.
        labels: Class indices in range, shape ``(M,)``.
        table: ``T^t``, or ``T^-1``, shape ``(C, C)``; fastest when its rows lie contiguous in memory.
        backward: Whether it is the latter.

    Returns:
        Shape ``(M,)``; minus infinity where column y of T is zero, with gradient zero there.
    """
    if _is_plain(logits, labels, table):
        if logits.requires_grad and torch.is_grad_enabled():
            return _LogLikelihood.apply(logits, labels, table, backward)
        return _evaluate(logits, labels, table, backward, slope=False)[0]
    return _exact(logits, labels, table, backward)


def mean_cross_entropy(logits: Tensor, labels: Tensor, table: Tensor, backward: bool = False) -> Tensor:
    """Minus the mean of :func:`log_likelihood`, in fewer steps; same arguments."""
    trained = logits.requires_grad and torch.is_grad_enabled()
    if trained and _is_plain(logits, labels, table) and len(logits):
        return _MeanCrossEntropy.apply(logits, labels, table, backward)
    return -log_likelihood(logits, labels, table, backward).mean()


def _is_plain(logits: Tensor, labels: Tensor, table: Tensor) -> bool:
    """Whether the call is eager, on the CPU, with a T that wants no gradient."""
    return logits.is_cpu and not table.requires_grad and values_readable(logits, labels, table)


def _exact(logits: Tensor, labels: Tensor, table: Tensor, backward: bool) -> Tensor:
    rows = table.index_select(0, labels)
    if backward:
        log_p = log_softmax(logits)
        return expectation(log_p, rows.to(log_p.dtype))
    centred = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = centred - centred.detach().amax(1, keepdim=True)
    log_q = exact_log_likelihood(centred, rows)
    return (log_q - centred.exp().sum(1).log()).masked_fill(log_q == -torch.inf, -torch.inf)


def exact_log_likelihood(log_p: Tensor, column: Tensor) -> Tensor:
    """``log sum_i p_i T_iy`` from log-probabilities and the column of T that each sample needs.

    Args:
        log_p: Shape ``(M, C)``, or any that broadcasts with ``column``; dimension 1 is summed. Need not be normalised.
        column: ``T[:, y]`` of each sample, shape ``(M, C)``.

    Returns:
        Shape ``(M,)``.
    """
    column = column.to(log_p.dtype)
    with torch.no_grad():  # the shift cancels, so it needs no gradient
        shift = torch.where(column > 0, log_p, -torch.inf).amax(1, keepdim=True)
        impossible = shift == -torch.inf
        shift = shift.masked_fill(impossible, 0)
    total = ((log_p - shift).clamp(max=LARGEST_EXPONENT).exp() * column).sum(1, keepdim=True)
    return (shift + total.masked_fill(impossible, 1).log()).masked_fill(impossible, -torch.inf).squeeze(1)


class _LogLikelihood(torch.autograd.Function):
    """:func:`log_likelihood`, whose gradient is minus the difference of :func:`_evaluate`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, table: Tensor, backward: bool) -> Tensor:
        ctx.is_backward, ctx.factor = backward, 1
        values, ctx.difference, _ = _evaluate(logits, labels, table, backward)
        ctx.save_for_backward(logits, labels, table)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if _is_plain_gradient(grad):
            difference = _handed_over(ctx)
            return difference.mul_(grad.neg().to(difference.dtype).unsqueeze(1)), None, None, None
        logits, labels, table = ctx.saved_tensors
        with torch.enable_grad():
            values = _exact(logits, labels, table, ctx.is_backward)
            return torch.autograd.grad(values, logits, grad, create_graph=True)[0], None, None, None


class _MeanCrossEntropy(torch.autograd.Function):
    """:func:`mean_cross_entropy`, whose gradient is one number times the difference of :func:`_evaluate`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, table: Tensor, backward: bool) -> Tensor:
        samples = len(logits)
        # Divided here, nothing is left to do for a gradient of 1; float16 has no room for numbers so small.
        ctx.factor, ctx.rest = (1, 1 / samples) if logits.dtype is torch.float16 else (1 / samples, 1)
        ctx.is_backward = backward
        values, ctx.difference, total = _evaluate(logits, labels, table, backward, factor=ctx.factor)
        ctx.save_for_backward(logits, labels, table)
        return torch.scalar_tensor(-total / samples, dtype=values.dtype, device=logits.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if _is_plain_gradient(grad):
            difference = _handed_over(ctx)
            rest = grad.item() * ctx.rest
            return difference if rest == 1 else difference.mul_(rest), None, None, None
        logits, labels, table = ctx.saved_tensors
        with torch.enable_grad():
            loss = -_exact(logits, labels, table, ctx.is_backward).mean()
            return torch.autograd.grad(loss, logits, grad, create_graph=True)[0], None, None, None


def _is_plain_gradient(grad: Tensor) -> bool:
    """Whether no second derivative follows, and no other is taken at the same time (``is_grads_batched``)."""
    batched = torch._C._functorch.is_legacy_batchedtensor(grad)
    return not (torch.is_grad_enabled() or batched) and values_readable(grad)


def _handed_over(ctx: Any) -> Tensor:
    """The slope's buffer, to be overwritten by the caller: another pass over the same graph computes it anew."""
    difference, ctx.difference = ctx.difference, None
    if difference is None:
        logits, labels, table = ctx.saved_tensors
        difference = _evaluate(logits, labels, table, ctx.is_backward, factor=ctx.factor)[1]
    return difference


def _evaluate(
    logits: Tensor, labels: Tensor, table: Tensor, backward: bool, slope: bool = True, factor: float = 1
) -> tuple[Tensor, Tensor, float]:
    """All that a loss and its first derivative need.

    Returns:
        :func:`log_likelihood`, shape ``(M,)``; if a slope is wanted, the difference, which is minus its gradient times
        the factor: ``p - r`` with ``r_i = p_i T_iy / (p T)_y``, the clean label's posterior, for forward correction,
        ``p - (T^-1)_y`` for backward; and the sum of the first.
    """
    if fused.serves(logits, labels, table):
        smallest = -math.inf if backward else fused.SMALLEST_LOG_SUM
        values, difference, total = fused.evaluate(logits, labels, table, backward, slope, factor, smallest)
    else:
        values, difference = _in_pieces(logits, labels, table, backward, slope, factor)
        smallest = -math.inf if backward else math.log(SMALLEST_SUM[values.dtype])
        trusted = not len(values) or values.min().item() > smallest
        total = values.sum().item() if trusted else math.nan
    if not math.isnan(total):
        return values, difference, total
    small = (~(values > smallest)).nonzero().squeeze(1)  # NaN is here too, and stays NaN
    with torch.set_grad_enabled(slope):
        some = logits[small].detach().requires_grad_(slope)
        exact = _exact(some, labels[small], table, backward)
        if slope:
            difference[small] = torch.autograd.grad(exact.sum(), some)[0].mul_(-factor)
    values.index_copy_(0, small, exact.detach())
    return values, difference, values.sum().item()


def _in_pieces(
    logits: Tensor, labels: Tensor, table: Tensor, backward: bool, slope: bool, factor: float
) -> tuple[Tensor, Tensor]:
    """The values and the difference of :func:`_evaluate`, not exact where they underflow, in steps of torch."""
    samples, classes = logits.shape
    rows = max(1, PIECE // classes)
    piece = _backward_piece if backward else _forward_piece
    if samples <= rows:
        return piece(logits, labels, table, slope, factor)
    difference = torch.empty_like(logits, memory_format=torch.contiguous_format) if slope else logits
    pieces = zip(logits.split(rows), labels.split(rows), difference.split(rows), strict=True)
    values = torch.cat([piece(z, y, table, slope, factor, out if slope else None)[0] for z, y, out in pieces])
    return values, difference


def _forward_piece(
    logits: Tensor, labels: Tensor, columns: Tensor, slope: bool, factor: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    wide = _widened(logits.dtype)
    p = _softmax(logits, wide, out if wide == logits.dtype else None)
    r = columns.index_select(0, labels)
    r = (r if r.dtype == wide else r.to(wide)).mul_(p)
    q = r.sum(1, keepdim=True)
    if slope:
        p.addcdiv_(r, q, value=-1)
    return q.log_().squeeze(1), _finished(p, logits.dtype, slope, factor, out)


def _backward_piece(
    logits: Tensor, labels: Tensor, inverse: Tensor, slope: bool, factor: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    wide = _widened(logits.dtype)
    p = torch.log_softmax(logits, 1, dtype=wide, out=out if wide == logits.dtype else None)
    weights = inverse.index_select(0, labels).to(wide)
    values = (weights * p).sum(1)
    if slope:
        p.exp_().mul_(weights.sum(1, keepdim=True)).sub_(weights)
    return values, _finished(p, logits.dtype, slope, factor, out)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in SMALLEST_SUM else torch.float32


def _finished(difference: Tensor, dtype: torch.dtype, slope: bool, factor: float, out: Tensor | None) -> Tensor:
    """The difference times the factor, in the dtype of the logits and where it belongs, if a slope is wanted."""
    if not slope:
        return difference
    if factor != 1:
        difference.mul_(factor)
    if difference.dtype == dtype:
        return difference
    return difference.to(dtype) if out is None else out.copy_(difference)


def _softmax(logits: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    if logits.shape[1] >= VECTOR:
        return torch.softmax(logits, 1, dtype=dtype, out=out)
    p = torch.softmax(logits.t().contiguous(), 0, dtype=dtype).t()
    return p.contiguous() if out is None else out.copy_(p)


def log_matmul(log_p: Tensor, matrix: Tensor) -> Tensor:
    """``log(exp(log_p) @ matrix)`` for a matrix without negative entries, exact where the product underflows.

    Args:
        log_p: Shape ``(M, C)``.
        matrix: Shape ``(C, K)``.

    Returns:
        Shape ``(M, K)``; minus infinity where a column is zero.
    """
    matrix = matrix.to(log_p.dtype)
    if not values_readable(log_p, matrix):
        return exact_log_likelihood(log_p.unsqueeze(2), matrix)  # when compiled, nothing of size (M, C, K) is kept
    with torch.autocast(log_p.device.type, enabled=False):
        product = log_p.exp() @ matrix
    return repaired_log(product, lambda i, j: exact_log_likelihood(log_p[i], matrix.t()[j]), len(matrix))


def repaired_log(product: Tensor, exact: Callable[[Tensor, Tensor], Tensor], terms: int) -> Tensor:
    """Logarithm of probabilities that came out of a sum, with those too small to be trusted computed anew.

    Args:
        product: Non-negative sums, shape ``(M, K)``.
        exact: Gives the exact logarithms of the entries at ``rows`` and ``columns``.
        terms: How many terms such a sum has, by which the work is cut into pieces.

    Returns:
        Shape ``(M, K)``.
    """
    if not values_readable(product):
        rows = torch.arange(product.shape[0], device=product.device).repeat_interleave(product.shape[1])
        columns = torch.arange(product.shape[1], device=product.device).repeat(product.shape[0])
        return exact(rows, columns).view_as(product)
    small = ~(product > SMALLEST_SUM[product.dtype])
    if not small.any():
        return product.log()
    rows, columns = small.nonzero(as_tuple=True)
    length = max(1, PIECE // terms)
    mended = torch.cat([exact(i, j) for i, j in zip(rows.split(length), columns.split(length), strict=True)])
    return product.masked_fill(small, 1).log().index_put((rows, columns), mended)
