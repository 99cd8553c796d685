"""Canaries: what the kernels and tensors ask of torch's inside is there, and still means what they take it for."""

import ctypes

import pytest
import torch

from noisylightning.kernels import fused
from noisylightning.tensors import values_readable


def test_torch_tells_a_tensor_that_stands_for_others():
    """``torch._C._functorch.is_functorch_wrapped_tensor``: no Python may look at its values."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    seen = []

    def look(x):
        seen.append((wrapped(x), values_readable(x)))
        return x.sum()

    x = torch.ones(2, 3)
    torch.func.vmap(look)(x)
    torch.func.grad(look)(x)
    assert seen == [(True, False), (True, False)]
    assert not wrapped(x)
    assert values_readable(x)


def test_torch_tells_a_batch_of_gradients():
    """``torch._C._functorch.is_legacy_batchedtensor``: what ``is_grads_batched`` hands to a backward pass."""
    batched = torch._C._functorch.is_legacy_batchedtensor
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(batched(grad))
            return grad

    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Watch.apply(x), x, torch.eye(3), is_grads_batched=True)
    torch.autograd.grad(Watch.apply(x), x, torch.ones(3))
    assert seen == [True, False]


def test_torch_tells_that_it_compiles():
    """``torch.compiler.is_compiling``, which :func:`values_readable` asks."""
    torch.compiler.reset()

    def told(x):
        return x + 1 if values_readable(x) else x - 1

    x = torch.zeros(2)
    assert told(x).tolist() == [1, 1]
    assert torch.compile(told, fullgraph=True, backend="eager")(x).tolist() == [-1, -1]


def test_torch_lends_its_loop_over_threads():
    """``torch_parallel_for`` of the library that ``torch._C.__file__`` names: each index once, in ranges."""
    if not fused.PARALLEL_FOR:
        pytest.skip("this torch exports no torch_parallel_for: the kernel takes a plain loop")
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    loop_type = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, body_type, ctypes.c_void_p
    )
    seen = []
    body = body_type(lambda begin, end, _: seen.extend(range(begin, end)))
    assert loop_type(fused.PARALLEL_FOR)(3, 20, 100, body, None) == 0
    assert sorted(seen) == list(range(3, 20))


def test_a_buffer_that_torch_calls_contiguous_is_one_run_of_memory():
    """``data_ptr`` and ``is_contiguous`` are all that the kernel knows of a tensor."""
    x = torch.arange(6, dtype=torch.float32).view(2, 3)
    numbers = (ctypes.c_float * 6).from_address(x.data_ptr())
    assert list(numbers) == [0, 1, 2, 3, 4, 5]
    assert not x.t().is_contiguous()
