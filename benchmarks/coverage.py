"""Measure how often the intervals from the standard errors of T-hat cover T.

    python benchmarks/coverage.py

Each repetition draws 3,000 samples of four classes, that stand apart or overlap, with their exact posteriors, and their
noisy labels from T. An estimator sees p(noisy | x), the noisy labels, the inputs as features, and the clean labels of
every tenth sample; the interval of an entry is T-hat plus and minus 1.96 standard errors. A standard error is right if
it is as large as the deviation of T-hat over repetitions; its interval covers only where T-hat is not off by more for
another reason, its bias, which no bootstrap sees. "refined" is what a fit's two rounds make of the confident joint,
with exact posteriors, and the standard errors of the last. Writes ``benchmarks/results/coverage.json`` after each
estimator, and ``coverage.md``; estimators that are in the file are not run again.
"""

import argparse
import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from torch import Tensor

import noisylightning as nl
from noisylightning.errors import BadValue
from noisylightning.functional.bootstrap import part_of
from noisylightning.functional.refinement import HeldOut, refine
from noisylightning.predictions import Predictions

ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "anchor": ("AnchorEstimator", {}),
    "anchor, maximum": ("AnchorEstimator", {"quantile": None}),
    "Dual-T": ("DualTEstimator", {}),
    "confident joint": ("ConfidentJointEstimator", {}),
    "trusted data": ("TrustedDataEstimator", {}),
    "clusterability": ("ClusterabilityEstimator", {}),
    "selective classification": ("CostSensitiveEstimator", {}),
    "simplex": ("SimplexEstimator", {}),
}
"""Class and arguments of each; a new one is a line here. What offers no standard errors is left out."""

TRUE = torch.tensor(
    [
        [0.70, 0.20, 0.05, 0.05],
        [0.05, 0.60, 0.30, 0.05],
        [0.10, 0.10, 0.75, 0.05],
        [0.25, 0.05, 0.05, 0.65],
    ],
    dtype=torch.float64,
)
CLASSES, SAMPLES = len(TRUE), 3000
ROUNDING = 1e-6  # of T-hat, in float32: an anchor that is certain is off by no more
DISTANCES = {"apart": 4.0, "overlapping": 2.0}  # of the classes' centres from the origin, in standard deviations


def factories() -> dict[str, Any]:
    """Return what makes each estimator that offers standard errors."""
    found = {}
    for name, (kind, arguments) in ESTIMATORS.items():
        factory = partial(getattr(nl, kind), **arguments) if hasattr(nl, kind) else None
        with suppress(BadValue):
            if factory is not None and factory(CLASSES, replicates=2):
                found[name] = factory
        if name not in found:
            print(f"left out: {name}")
    return found | {"refined": Refined}


class Refined(nl.ConfidentJointEstimator):
    """What a fit's rounds make of the confident joint, if its networks give exact posteriors."""

    def __init__(self, num_classes: int, replicates: int = 0) -> None:
        super().__init__(num_classes)
        self.seen: Predictions
        self.error: Tensor

    def _accumulate(self, batch: Predictions) -> None:
        super()._accumulate(batch)
        self.seen = batch

    def compute(self) -> Tensor:
        """Return T-hat after two rounds."""
        transition = super().compute().double()
        clean = (self.seen.logits.softmax(dim=1) @ TRUE.inverse()).clamp(min=1e-300).log()
        transition = 0.98 * transition + 0.02 / CLASSES  # a fit mixes too: zeros would stay
        half = part_of(self.seen.index, 2) == 0
        parts = [HeldOut(clean[of], self.seen.noisy_labels[of], self.seen.index[of]) for of in (half, ~half)]
        for _ in range(2):
            found = refine(parts, transition)
            transition = found.transition
        error = found.standard_error()
        assert error is not None
        self.error = error
        return transition

    def standard_error(self) -> Tensor:
        """Return that of the last round."""
        return self.error


def draw(repetition: int, distance: float) -> Predictions:
    """Draw samples of Gaussian classes, with the posteriors that these have, and noisy labels."""
    generator = torch.Generator().manual_seed(repetition)
    clean = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    centres = distance * torch.eye(CLASSES, dtype=torch.float64)
    features = centres[clean] + torch.randn(SAMPLES, CLASSES, generator=generator, dtype=torch.float64)
    posterior = (features @ centres.T).softmax(dim=1)  # all classes are equally likely, and centres equally long
    noisy = torch.multinomial(TRUE[clean], 1, generator=generator).flatten()
    return Predictions(
        (posterior @ TRUE).log(),
        noisy,
        # A bootstrap's weights go by the index: another repetition is another sample.
        index=repetition * SAMPLES + torch.arange(SAMPLES),
        held_out=torch.ones(SAMPLES, dtype=torch.bool),
        features=features,
        clean_labels=clean.where(torch.arange(SAMPLES) % 10 == 0, -1),
    )


def estimate(factory: Any, repetition: int, distance: float, replicates: int) -> tuple[Tensor, Tensor]:
    """Return T-hat and its standard error."""
    estimator = factory(CLASSES, replicates=replicates)
    estimator.update(draw(repetition, distance))
    return estimator.compute().double(), estimator.standard_error().double()


def measure(factory: Any, distance: float, repetitions: int, replicates: int) -> dict[str, Any]:
    """Repeat, and compare the intervals with T, and the standard errors with the spread of T-hat."""
    begin = time.perf_counter()
    pairs = [estimate(factory, repetition, distance, replicates) for repetition in range(repetitions)]
    estimates, errors = (torch.stack(part) for part in zip(*pairs, strict=True))
    covered = ((estimates - TRUE).abs() <= 1.96 * errors + ROUNDING).double().mean(dim=0)
    return {
        "covered": float(covered.mean()),
        "covered_least": float(covered.min()),
        "standard_error": float(errors.mean()),
        "deviation": float(estimates.std(dim=0).mean()),
        "bias": float((estimates.mean(dim=0) - TRUE).abs().mean()),
        "seconds": time.perf_counter() - begin,
        "covered_by_entry": covered.tolist(),
    }


def main() -> None:
    """Run what is not in the file yet, and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    arguments = parser.parse_args()
    settings = {
        "repetitions": arguments.repetitions,
        "replicates": arguments.replicates,
        "samples": SAMPLES,
        "distances": DISTANCES,
        "transition": TRUE.tolist(),
    }
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results = before["results"] if before.get("settings") == settings else {}
    for name, factory in factories().items():
        if name not in results:
            results[name] = {
                classes: measure(factory, distance, arguments.repetitions, arguments.replicates)
                for classes, distance in DISTANCES.items()
            }
            write_json(arguments.output, {"environment": environment(), "settings": settings, "results": results})
    rows = [
        row(name, classes, results[name][classes])
        for classes in DISTANCES
        for name in (*ESTIMATORS, "refined")
        if name in results
    ]
    header = ["estimator", "classes", "covered", "standard error", "deviation of T-hat", "bias", "in 90 to 99 %"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


def row(name: str, classes: str, found: dict[str, Any]) -> list[str]:
    """Write a line of the table."""
    verdict = "yes" if 0.9 <= found["covered"] <= 0.99 else "no"
    if max(found["deviation"], found["bias"]) < ROUNDING:
        verdict = "T-hat is exact, up to rounding"
    elif verdict == "no" and found["bias"] > found["standard_error"]:
        verdict = "no: its bias exceeds its standard error"
    numbers = [f"{found[key]:.2g}" for key in ("standard_error", "deviation", "bias")]
    return [name, classes, f"{100 * found['covered']:.1f} %", *numbers, verdict]


if __name__ == "__main__":
    main()
