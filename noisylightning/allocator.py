"""Memory that large tensors on the CPU leave behind."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEPS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# Where glibc's own thresholds, which move up with what is freed and are fixed once one is set, end.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}


@contextmanager
def kept_for_reuse() -> Iterator[None]:
    """Keep the memory of freed tensors for the next ones, while this lasts; for a network that only predicts.

    glibc gives buffers of 32 MiB and more back to the system at once, and fetches the next one, which the system has to
    fill with zeros. A convolutional network that predicts batches of images on the CPU spends more than half of its
    time so. It holds for tensors of the main thread; where the C library is another, nothing is done.

    Example:
        >>> import torch
        >>> with kept_for_reuse():
        ...     total = sum(float(torch.ones(2**20).sum()) for _ in range(3))
    """
    try:
        library = ctypes.CDLL(None)
        set_option, trim = library.mallopt, library.malloc_trim
        library.gnu_get_libc_version  # noqa: B018  (another library's malloc has other options)
    except (AttributeError, OSError, TypeError):
        yield
        return
    for option, value in _KEEPS.items():
        set_option(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            set_option(option, value)
        trim(0)
