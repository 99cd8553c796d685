"""The way into ``_fused_kernel.cpp``: ``(p T)_y`` and its slope in one go, where the package was built with a compiler.

The kernel takes addresses, so all that makes an address safe to hand over is asked here. Without it, and for what it
does not serve, :mod:`noisylightning.functional._kernels` does the same in steps of torch.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor, nn

try:
    from noisylightning.functional import _fused_kernel as kernel
except ImportError:  # installed where there was no C++ compiler
    kernel = None  # type: ignore[assignment]

__all__ = ["PARALLEL_FOR", "SMALLEST_LOG_SUM", "kernel", "log_likelihood", "serves"]

SMALLEST_LOG_SUM = math.log(1e-19)  # e^z below 2e-38 counts as 0: beside a larger sum this is not to be seen
PLAIN = (Tensor, nn.Parameter)  # a subclass may keep its numbers elsewhere


def _address_of_parallel_for() -> int:
    """The loop over threads of torch's stable C interface; 0, which means a plain loop, where it cannot be found."""
    try:
        loop = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(loop, ctypes.c_void_p).value or 0


PARALLEL_FOR = _address_of_parallel_for()


def serves(logits: Tensor, labels: Tensor, columns: Tensor) -> bool:
    """Whether the kernel is there, and made for these: on the CPU, contiguous, T in float32.

    Args:
        logits: Shape ``(M, C)``.
        labels: Class indices, shape ``(M,)``.
        columns: ``T^t``, shape ``(C, C)``.
    """
    return (
        kernel is not None
        and logits.dtype in (torch.float32, torch.bfloat16)
        and columns.dtype is torch.float32
        and labels.dtype is torch.int64
        and logits.is_contiguous()
        and labels.is_contiguous()
        and columns.is_contiguous()
        and not logits.is_neg()
        and type(logits) in PLAIN
        and type(labels) in PLAIN
        and type(columns) in PLAIN
    )


def log_likelihood(
    logits: Tensor, labels: Tensor, columns: Tensor, slope: bool, factor: float
) -> tuple[Tensor, Tensor, float]:
    """``log (p T)_y``, not exact where it underflows, and its slope.

    Args:
        logits: Shape ``(M, C)``, float32 or bfloat16.
        labels: Class indices, shape ``(M,)``.
        columns: ``T^t``, shape ``(C, C)``, float32.
        slope: Whether ``p - r`` is wanted.
        factor: What ``p - r`` is multiplied by.

    Returns:
        ``log (p T)_y``, shape ``(M,)``; the slope, in the dtype of the logits, if wanted; and the sum of the first, or
        NaN where one of them is not above :data:`SMALLEST_LOG_SUM`.

    Raises:
        IndexError: A label out of range.
    """
    samples, classes = logits.shape
    log_q = torch.empty(samples, dtype=torch.float32, device=logits.device)
    difference = torch.empty_like(logits) if slope else None
    total = kernel.log_likelihood(
        PARALLEL_FOR,
        logits.dtype is torch.bfloat16,
        logits.data_ptr(),
        labels.data_ptr(),
        columns.data_ptr(),
        samples,
        classes,
        log_q.data_ptr(),
        0 if difference is None else difference.data_ptr(),
        factor,
        SMALLEST_LOG_SUM,
    )
    return log_q, logits if difference is None else difference, total
