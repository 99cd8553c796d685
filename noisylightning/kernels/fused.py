"""The way into ``_fused_kernel.cpp``: corrected cross-entropy and its slope in one go, where it could be compiled.

The kernel takes addresses, so all that makes an address safe to hand over is asked here. Without it, and for what it
does not serve, :mod:`noisylightning.kernels.cross_entropy` does the same in steps of torch.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor, nn

try:
    from noisylightning.kernels import _fused_kernel as kernel
except ImportError:  # installed where there was no C++ compiler
    kernel = None  # type: ignore[assignment]

__all__ = ["PARALLEL_FOR", "SMALLEST_LOG_SUM", "evaluate", "kernel", "serves"]

SMALLEST_LOG_SUM = math.log(1e-19)  # the kernel takes e^z below 2e-38 for 0: it is not to be seen in a larger sum
PLAIN = (Tensor, nn.Parameter)  # a subclass may keep its numbers elsewhere


def _address_of_parallel_for() -> int:
    """The loop over threads of torch's stable C interface; 0, which means a plain loop, where it cannot be found."""
    try:
        loop = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(loop, ctypes.c_void_p).value or 0


PARALLEL_FOR = _address_of_parallel_for()


def serves(logits: Tensor, labels: Tensor, table: Tensor) -> bool:
    """Whether the kernel is there, and made for these: on the CPU, contiguous, T in float32.

    Args:
        logits: Shape ``(M, C)``.
        labels: Class indices, shape ``(M,)``.
        table: ``T^t`` or ``T^-1``, shape ``(C, C)``.
    """
    return (
        kernel is not None
        and logits.dtype in (torch.float32, torch.bfloat16)
        and table.dtype is torch.float32
        and labels.dtype is torch.int64
        and logits.is_contiguous()
        and labels.is_contiguous()
        and table.is_contiguous()
        and not logits.is_neg()
        and type(logits) in PLAIN
        and type(labels) in PLAIN
        and type(table) in PLAIN
    )


def evaluate(
    logits: Tensor, labels: Tensor, table: Tensor, backward: bool, slope: bool, factor: float, smallest: float
) -> tuple[Tensor, Tensor, float]:
    """``log (p T)_y``, or ``sum_k (T^-1)_yk log p_k``, and its slope.

    Args:
        logits: Shape ``(M, C)``, float32 or bfloat16.
        labels: Class indices, shape ``(M,)``.
        table: ``T^t``, or ``T^-1``, shape ``(C, C)``, float32.
        backward: Whether it is the latter.
        slope: Whether the slope is wanted.
        factor: What the slope is multiplied by, and turned round.
        smallest: What a value must exceed to be trusted.

    Returns:
        One value per sample, shape ``(M,)``; the slope, in the dtype of the logits, if wanted; and the sum of the
        values, or NaN where one of them cannot be trusted.

    Raises:
        IndexError: A label out of range.
    """
    samples, classes = logits.shape
    values = torch.empty(samples, dtype=torch.float32, device=logits.device)
    difference = torch.empty_like(logits) if slope else None
    total = kernel.evaluate(
        PARALLEL_FOR,
        backward,
        logits.dtype is torch.bfloat16,
        logits.data_ptr(),
        labels.data_ptr(),
        table.data_ptr(),
        samples,
        classes,
        values.data_ptr(),
        0 if difference is None else difference.data_ptr(),
        factor,
        smallest,
    )
    return values, logits if difference is None else difference, total
