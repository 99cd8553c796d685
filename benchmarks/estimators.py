"""Time and memory of the estimators of T on a table of predictions, beside cleanlab's confident joint.

    python benchmarks/estimators.py

One thread. Our functions and cleanlab's, ``compute_confident_joint`` and then ``estimate_latent``, get one float32
table and one list of labels, and run on it in turn, so that whatever else the machine does falls on all alike; told is
the median of the processor's time over a few rounds after the first. Rows ``two passes`` are the estimators, fed with
batches of ``Predictions`` twice so that they keep none: they check each batch and take its softmax in each pass. Peak
memory is what a method takes beyond the table, in a process of its own. The largest table exists batch by batch alone,
drawn anew in each pass; what drawing takes is told too, and taken off. Clusterability gets a table of 64 features, one
normal cloud a class, and seeks neighbours with faiss. Needs Linux. Writes ``benchmarks/results/estimators.json`` and
``estimators.md``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from losses import resident
from torch import Tensor

from noisylightning.estimators import AnchorEstimator, ConfidentJointEstimator, DualTEstimator, TransitionEstimator
from noisylightning.functional import anchor_transition, confident_joint_transition, dual_transition
from noisylightning.functional.clusterability import Clusters, clusterability
from noisylightning.predictions import Predictions
from noisylightning.transition import relative_l1_error, symmetric

RESULTS = Path(__file__).parent / "results"
TABLES = [(500_000, 100), (100_000, 1_000)]
LARGEST = (1_000_000, 1_000)
FEATURES = (1_000_000, 100, 64)  # samples, classes, features
ESTIMATORS: dict[str, type[TransitionEstimator]] = {
    "confident joint, two passes": ConfidentJointEstimator,
    "anchor, two passes": AnchorEstimator,
    "dual, two passes": DualTEstimator,
}
BATCH = 2**20  # probabilities

Parts = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def draw(samples: int, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw log-probabilities and noisy labels, 30 % of them the next class, batch by batch; the same in each pass."""
    generator = torch.Generator().manual_seed(0)
    size = BATCH // classes
    for start in range(0, samples, size):
        count = min(size, samples - start)
        logits = torch.randn(count, classes, generator=generator)
        clean = torch.arange(start, start + count) % classes
        peak = torch.log(torch.tensor(classes)) + 1.5 + torch.randn(count, generator=generator)
        logits[torch.arange(count), clean] += peak
        logits[torch.arange(count), (clean + 1) % classes] += peak - 0.85
        wrong = torch.rand(count, generator=generator) < 0.3
        yield logits.log_softmax(dim=1), (clean + wrong) % classes


def whole(samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Draw the whole table, and hold nothing else of its size while doing so."""
    table, labels = torch.empty(samples, classes), torch.empty(samples, dtype=torch.long)
    start = 0
    for logits, noisy in draw(samples, classes):
        table[start : start + len(noisy)], labels[start : start + len(noisy)] = logits, noisy
        start += len(noisy)
    return table, labels


def cleanlab(probs: Tensor, labels: Tensor) -> None:
    """The confident joint, and T from it, by cleanlab."""
    from cleanlab.count import compute_confident_joint, estimate_latent

    estimate_latent(compute_confident_joint(labels.numpy(), probs.numpy()), labels.numpy())


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "cleanlab": cleanlab,
    "confident joint": confident_joint_transition,
    "anchor": anchor_transition,
    "dual": dual_transition,
}


def fed(estimator: TransitionEstimator, parts: Parts) -> None:
    """Feed an estimator in two passes."""

    def records() -> Iterator[Predictions]:
        for logits, labels in parts():
            yield Predictions(logits, labels, held_out=torch.ones(len(labels), dtype=torch.bool))

    for batch in records():
        estimator.survey(batch)
    estimator.end_survey()
    for batch in records():
        estimator.update(batch)
    estimator.compute()


def task(name: str, logits: Tensor, labels: Tensor) -> Callable[[], object]:
    """One method on a table, which holds probabilities for a function, log-probabilities for an estimator."""
    if name in FUNCTIONS:
        return partial(FUNCTIONS[name], logits, labels)
    size, classes = BATCH // logits.shape[1], logits.shape[1]

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(logits.split(size), labels.split(size), strict=True)

    return lambda: fed(ESTIMATORS[name](classes), parts)


def measure_time(samples: int, classes: int, rounds: int) -> dict[str, float]:
    """Median seconds of every method, taken in turn."""
    logits, labels = whole(samples, classes)
    probs = logits.exp()
    tasks = {name: task(name, probs if name in FUNCTIONS else logits, labels) for name in [*FUNCTIONS, *ESTIMATORS]}
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, run in tasks.items():
            begin = time.process_time()
            run()
            if turn:
                taken[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_memory(name: str, samples: int, classes: int) -> int:
    """Peak bytes that one method takes beyond the table; call it in a fresh process."""
    few, many = whole(20 * classes, classes), whole(samples, classes)
    for table, _ in (few, many):
        if name in FUNCTIONS:
            table.exp_()
    task(name, *few)()  # imports are no cost of the method
    return peak_of(task(name, *many))


def peak_of(run: Callable[[], object]) -> int:
    """Peak bytes that a call takes."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measure_largest(name: str, samples: int, classes: int) -> dict[str, float]:
    """Seconds and peak bytes of one estimator on batches that are drawn on the fly; call it in a fresh process."""
    begin = time.process_time()
    for _ in range(2):
        for _ in draw(samples, classes):
            pass
    drawing = time.process_time() - begin
    begin = time.process_time()
    peak = peak_of(lambda: fed(ESTIMATORS[name](classes), lambda: draw(samples, classes)))
    return {
        "seconds": time.process_time() - begin - drawing,
        "seconds_of_drawing": drawing,
        "peak_bytes_beyond_table": peak,
    }


def measure_features(samples: int, classes: int, width: int) -> dict[str, float]:
    """Seconds, peak bytes and error of clusterability, 30 % of the labels being any of the others."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(samples) % classes
    features = 0.8 * torch.randn(classes, width, generator=generator)[clean]
    features += torch.randn(samples, width, generator=generator)
    transition = symmetric(classes, 0.3)
    labels = torch.multinomial(transition[clean], 1, generator=generator).flatten()
    clusterability(features[:10_000], labels[:10_000], classes, approximate=True)  # imports are no cost of the method
    found: list[Clusters] = []
    begin = time.process_time()
    peak = peak_of(lambda: found.append(clusterability(features, labels, classes)))
    return {
        "seconds": time.process_time() - begin,
        "peak_bytes_beyond_table": peak,
        "error": float(relative_l1_error(found[0].transition, transition.double())),
        "expected_error": found[0].noise,
    }


def in_process(what: str, *arguments: Any) -> Any:
    """Call a measurement in a fresh process, which returns freed memory to the system at once where memory counts."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if what != "measure_time":
        settings["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, __file__, "--measure", json.dumps([what, *arguments])]
    return json.loads(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "measure_time": measure_time,
    "measure_memory": measure_memory,
    "measure_largest": measure_largest,
    "measure_features": measure_features,
}


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds whose median is told")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        what, *given = json.loads(arguments.measure)
        print(json.dumps(MEASUREMENTS[what](*given)))
        return
    rows: list[dict[str, Any]] = []
    for samples, classes in TABLES:
        seconds = in_process("measure_time", samples, classes, arguments.rounds)
        for name, taken in seconds.items():
            peak = in_process("measure_memory", name, samples, classes)
            rows.append({"samples": samples, "classes": classes, "method": name, "seconds": taken})
            rows[-1]["peak_bytes_beyond_table"] = peak
            print(rows[-1], flush=True)
    for name in ESTIMATORS:
        row = {"samples": LARGEST[0], "classes": LARGEST[1], "method": name}
        rows.append({**row, **in_process("measure_largest", name, *LARGEST)})
        print(rows[-1], flush=True)
    row = {"samples": FEATURES[0], "classes": FEATURES[1], "width": FEATURES[2], "method": "clusterability"}
    rows.append({**row, **in_process("measure_features", *FEATURES)})
    print(rows[-1], flush=True)
    write_json(
        RESULTS / "estimators.json", {"environment": environment() | {"cleanlab": version("cleanlab")}, "rows": rows}
    )
    write_table(RESULTS / "estimators.md", *table(rows))


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One line per table and method."""
    header = ["N", "C", "table, MB", "method", "seconds", "peak memory beyond the table, MB"]
    body = []
    for row in rows:
        size = 4e-6 * row["samples"] * row.get("width", row["classes"])
        measured = [f"{row['seconds']:.2f}", f"{1e-6 * row['peak_bytes_beyond_table']:.0f}"]
        body.append([f"{row['samples']:,}", f"{row['classes']:,}", f"{size:.0f}", row["method"], *measured])
    return header, body


if __name__ == "__main__":
    main()
