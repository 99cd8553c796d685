"""log (p T)_y and log p T for a dense T, exact where softmax and matrix products underflow.

Two ways to the same number. ``exact_*`` are plain differentiable operations, shifted per sample so that nothing
underflows: they serve compilation, ``torch.func``, a T that wants a gradient, second derivatives, and accelerators.
:class:`_LogLikelihood` is for eager CPU training with a fixed T: one exponential per logit, cache-sized pieces, and one
saved buffer; the rare samples that underflow are repaired by the exact way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisylightning.functional._checks import values_readable
from noisylightning.functional._reduction import log_softmax

PIECE = 2**18  # entries worked on at a time: 1 MiB of float32, which stays in a core's cache
LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32 and far above what any sum of probabilities can hide


def log_likelihood(logits: Tensor, target: Tensor, transition: Tensor) -> Tensor:
    """``log (p T)_y``.

    Args:
        logits: Shape ``(M, C)``.
        target: Class indices in range, shape ``(M,)``.
        transition: T, shape ``(C, C)``; fastest when its columns lie contiguous in memory.

    Returns:
        Shape ``(M,)``; minus infinity where column y of T is zero, with gradient zero there.
    """
    eager = logits.device.type == "cpu" and values_readable(logits) and values_readable(target)
    if eager and not transition.requires_grad and values_readable(transition):
        return _LogLikelihood.apply(logits, target, transition)
    return exact_log_likelihood(log_softmax(logits), transition.t().index_select(0, target))


def exact_log_likelihood(log_p: Tensor, column: Tensor) -> Tensor:
    """``log sum_i p_i T_iy`` from log-probabilities and the column of T that each sample needs.

    Args:
        log_p: Shape ``(M, C)``, or any that broadcasts with ``column``; dimension 1 is summed.
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
    """``log (p T)_y`` with gradient ``r - p``, where ``r_i = p_i T_iy / (p T)_y`` is the clean label's."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, transition: Tensor) -> Tensor:
        logits = logits.contiguous()
        samples, classes = logits.shape
        wide = torch.promote_types(logits.dtype, torch.float32)
        columns = transition.t()
        likelihood = logits.new_empty(samples, dtype=wide)
        training = ctx.needs_input_grad[0]
        difference = torch.empty_like(logits) if training else None  # p - r, all that the first derivative needs
        rows = max(1, PIECE // classes)
        for start in range(0, samples, rows):
            piece = slice(start, start + rows)
            p = torch.softmax(logits[piece], 1, dtype=wide)
            r = columns.index_select(0, target[piece]).to(wide).mul_(p)
            q = torch.sum(r, 1, out=likelihood[piece])
            if difference is not None:
                torch.addcmul(p, r, q.reciprocal().unsqueeze(1), value=-1, out=difference[piece])
        log_q = likelihood.log()
        threshold = torch.finfo(wide).tiny ** 0.75  # below it, terms of the sum may have underflowed
        if samples and not likelihood.min() > threshold:  # NaN comes here too, and stays NaN
            small = (~(likelihood > threshold)).nonzero().squeeze(1)
            with torch.enable_grad():
                some = logits[small].detach().requires_grad_()
                exact = exact_log_likelihood(log_softmax(some), columns.index_select(0, target[small]))
                if difference is not None:
                    difference[small] = torch.autograd.grad(exact.sum(), some)[0].neg_()
            log_q[small] = exact.detach()
        ctx.save_for_backward(logits, target, transition, difference)
        return log_q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, target, transition, difference = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            exact = exact_log_likelihood(log_softmax(logits), transition.t().index_select(0, target))
            return torch.autograd.grad(exact, logits, grad, create_graph=True)[0], None, None
        return torch.mul(difference, grad.neg().unsqueeze(1), out=torch.empty_like(difference)), None, None


def log_matmul(log_p: Tensor, matrix: Tensor) -> Tensor:
    """``log(exp(log_p) @ matrix)`` for a matrix without negative entries, exact where the product underflows.

    Args:
        log_p: Shape ``(M, C)``.
        matrix: Shape ``(C, K)``.

    Returns:
        Shape ``(M, K)``; minus infinity where a column is zero.
    """
    matrix = matrix.to(log_p.dtype)
    if not (values_readable(log_p) and values_readable(matrix)):
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
    small = ~(product > torch.finfo(product.dtype).tiny ** 0.75)
    if not small.any():
        return product.log()
    rows, columns = small.nonzero(as_tuple=True)
    length = max(1, PIECE // terms)
    mended = torch.cat([exact(i, j) for i, j in zip(rows.split(length), columns.split(length), strict=True)])
    return product.masked_fill(small, 1).log().index_put((rows, columns), mended)
