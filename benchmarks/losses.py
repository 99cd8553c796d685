"""Time and memory of the corrected losses, as a ratio to torch.nn.functional.cross_entropy at the same shapes.

    python benchmarks/losses.py

Forward plus backward on random logits. Each formula runs in turn with cross-entropy, step by step, so that whatever
else the machine does falls on both alike; the ratio is that of their medians. Peak memory is what a step takes beyond
its inputs, measured in a process of its own. ``softmax @ T`` is the formula in common use, ``-log(softmax(z) @ T)[y]``.
On Linux the C library is told to keep freed memory: else what is measured is how often it gives a buffer back to the
system and has it zeroed again, which hangs on what ran before. The settings are in the result.
``no kernel`` is what remains of forward correction where the package was installed without a C++ compiler. CUDA is
measured too where there is one. Other work on the machine disturbs several threads more than one: then say
``--threads 1``. Writes ``benchmarks/results/losses.json`` and ``losses.md``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import environment, write_json, write_table
from torch import Tensor

from noisylightning.corrections import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.functional import forward_cross_entropy
from noisylightning.kernels import fused
from noisylightning.transition import SparseTransition, SymmetricTransition, Transition

RESULTS = Path(__file__).parent / "results"
BASE = "F.cross_entropy"
RIVAL = "softmax @ T"
SHAPES = [(10, 128), (10, 65536), (100, 128), (100, 8192), (1000, 128), (1000, 1024), (10_000, 128), (100_000, 128)]
SPARSE = 100_000  # classes from which T has 20 entries a row instead of all
DTYPES = ["float32", "bfloat16"]
MEMORY_ENTRIES = 2**23  # logits in the memory measurement: buffers that the allocator takes from the system and returns
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}

Formula = Callable[[Tensor, Tensor], Tensor]


def dense_transition(classes: int) -> Tensor:
    """A random T that mostly keeps the label."""
    noise = torch.rand(classes, classes, generator=torch.Generator().manual_seed(0))
    transition = noise.mul_(0.2 / noise.sum(1, keepdim=True))
    transition.diagonal().add_(0.8)
    return transition


def sparse_transition(classes: int, entries: int = 20) -> Transition:
    """A random T with a few entries a row."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(classes).repeat_interleave(entries)
    noisy = torch.randint(classes, (classes * entries,), generator=generator)
    noisy[::entries] = torch.arange(classes)
    probability = torch.full((classes * entries,), 0.2 / (entries - 1))
    probability[::entries] = 0.8
    with torch.sparse.check_sparse_tensor_invariants(True):
        return SparseTransition(torch.sparse_coo_tensor(torch.stack([clean, noisy]), probability, (classes, classes)))


def formulas(classes: int, device: str, dtype: torch.dtype, compiled: bool) -> dict[str, Formula]:
    """Everything that is compared, each as a function of logits and labels."""
    made: dict[str, Formula] = {BASE: F.cross_entropy}
    if classes >= SPARSE:
        transition = sparse_transition(classes).to(device)
        made["forward, sparse T"] = ForwardCorrection(transition)
        made["forward, symmetric T"] = ForwardCorrection(SymmetricTransition(classes, 0.2))
        return made
    dense = dense_transition(classes).to(device)
    forward = ForwardCorrection(dense).to(device)
    by_columns = dense.t().contiguous().t()
    narrow = dense.to(dtype)
    made[RIVAL] = lambda z, y: F.nll_loss((z.softmax(1) @ narrow).log(), y)
    made["forward"] = forward
    made["forward, function"] = lambda z, y: forward_cross_entropy(z, y, by_columns)
    if device == "cpu":
        made["forward, no kernel"] = without_kernel(forward)
    if compiled:
        made["forward, torch.compile"] = torch.compile(lambda z, y: forward(z, y), fullgraph=True, dynamic=False)
    made["forward, symmetric T"] = ForwardCorrection(SymmetricTransition(classes, 0.2))
    if classes < 10_000:
        made["backward"] = BackwardCorrection(dense).to(device)
    made["importance"] = ImportanceReweighting(dense).to(device)
    return made


def without_kernel(formula: Formula) -> Formula:
    """A formula as it runs where the package was installed without a C++ compiler."""

    def run(logits: Tensor, labels: Tensor) -> Tensor:
        kernel, fused.kernel = fused.kernel, None  # type: ignore[assignment]
        try:
            return formula(logits, labels)
        finally:
            fused.kernel = kernel

    return run


def problem(classes: int, samples: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Random logits, which want a gradient, and labels."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def step(formula: Formula, logits: Tensor, labels: Tensor) -> None:
    """One forward and backward pass."""
    logits.grad = None
    formula(logits, labels).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()


def measure_time(formula: Formula, logits: Tensor, labels: Tensor, seconds: float) -> tuple[float, float]:
    """Median times of a formula and of cross-entropy, in seconds, taken in turn."""
    compared = [formula, F.cross_entropy]
    times: list[list[float]] = [[], []]
    for each in compared * 3:
        step(each, logits, labels)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 11:
        for each, taken in zip(compared, times, strict=True):
            begin = time.perf_counter()
            step(each, logits, labels)
            taken.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def measure_memory(classes: int, dtype: str, device: str, name: str) -> int:
    """Peak bytes that a step of one formula takes beyond its inputs; on the CPU, call it in a fresh process."""
    samples = max(128, MEMORY_ENTRIES // classes)
    formula = formulas(classes, device, getattr(torch, dtype), compiled=False)[name]
    step(formula, *problem(classes, 2, getattr(torch, dtype), device))
    logits, labels = problem(classes, samples, getattr(torch, dtype), device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(formula, logits, labels)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size so far is forgotten
    before = resident("VmRSS")
    step(formula, logits, labels)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A line of ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}.")


def memory_of(classes: int, dtype: str, device: str, name: str) -> int:
    """:func:`measure_memory`, in a process that returns freed memory to the system at once."""
    task = json.dumps([classes, dtype, device, name])
    settings = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    settings["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, __file__, "--memory", task]
    return int(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2, help="time for each formula, shape and dtype")
    parser.add_argument("--threads", type=int, help="threads of the CPU; default: torch's")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which needs a C++ compiler")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out, which needs Linux on the CPU")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(measure_memory(*json.loads(arguments.memory)))
        return
    if not KEEP_MEMORY.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for dtype in DTYPES:
            for classes, samples in SHAPES:
                torch.compiler.reset()
                logits, labels = problem(classes, samples, getattr(torch, dtype), device)
                compared = formulas(classes, device, getattr(torch, dtype), not arguments.no_compile)
                for name, formula in compared.items():
                    taken, base = measure_time(formula, logits, labels, arguments.seconds)
                    row = {"device": device, "dtype": dtype, "classes": classes, "samples": samples, "formula": name}
                    rows.append({**row, "seconds": taken, "cross_entropy_seconds": base, "time_ratio": taken / base})
                    print(*row.values(), f"{taken * 1e6:.0f} us", f"{taken / base:.2f}", sep="  ", flush=True)
    if not arguments.no_memory:
        add_memory(rows)
    kernel = {"fused_kernel": fused.kernel is not None}
    write_json(RESULTS / "losses.json", {"environment": environment() | kernel, "rows": rows})
    write_table(RESULTS / "losses.md", *table(rows))


def add_memory(rows: list[dict[str, Any]]) -> None:
    """Peak memory for each device, dtype, number of classes and formula."""
    known: dict[tuple[int, str, str, str], int] = {}
    for row in rows:
        for name in (BASE, row["formula"]):
            key = (row["classes"], row["dtype"], row["device"], name)
            if key not in known and "compile" not in name:
                known[key] = memory_of(*key)
        peak = known.get((row["classes"], row["dtype"], row["device"], row["formula"]))
        if peak is not None:
            row["peak_bytes"] = peak
            row["memory_ratio"] = peak / known[row["classes"], row["dtype"], row["device"], BASE]


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One line per shape, one column per formula: time ratio, then memory ratio."""
    names = list(dict.fromkeys(row["formula"] for row in rows if row["formula"] != BASE))
    header = ["device", "dtype", "C", "N", f"{BASE}, us", *names]
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = row["device"], row["dtype"], row["classes"], row["samples"]
        lines.setdefault(key, {})[row["formula"]] = row
    body = []
    for key, found in lines.items():
        cells = [f"{1e6 * found[BASE]['seconds']:.0f}"]
        for name in names:
            row = found.get(name, {})
            memory = f" / {row['memory_ratio']:.2f}" if "memory_ratio" in row else ""
            cells.append(f"{row['time_ratio']:.2f}{memory}" if row else "")
        body.append([*map(str, key), *cells])
    return header, body


if __name__ == "__main__":
    main()
