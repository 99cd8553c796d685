"""Measure how often the intervals for accuracy on clean labels, from noisy ones, cover the truth.

    python benchmarks/clean_accuracy.py

Each repetition draws 5,000 held-out samples: clean classes, what two networks predict (right with probability 0.9 and
0.88, else of another class at random; where the second is asked anew, in one of four samples, it may differ), and
noisy labels. The truth is the networks' accuracy over all draws, the level 95 %.

T is known, or an estimate from 5,000 other samples with the standard errors of 50 bootstrap replicates: by noisy labels
of trusted samples, by the confident joint, or by a step of expectation maximisation, which ends every refinement; these
see the exact posteriors of Gaussian classes, so that T-hat has no bias, which no standard error sees.

Where noise depends on the sample, here on whether it is hard, the estimate is wrong; with 200 trusted labels beside,
prediction-powered inference is not. Writes ``benchmarks/results/clean_accuracy.json`` and ``.md``.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from torch import Tensor

from noisylightning import ConfidentJointEstimator
from noisylightning.functional import (
    Estimate,
    clean_accuracy,
    clean_accuracy_difference,
    clean_confusion_matrix,
    count_pairs,
    prediction_powered_accuracy,
)
from noisylightning.functional.bootstrap import bootstrap_weights, standard_deviation
from noisylightning.functional.expectation_maximization import expected_counts, maximize
from noisylightning.predictions import Predictions
from noisylightning.transition import mnist_asymmetric, pairflip, symmetric

SAMPLES, TRUSTED, REPLICATES = 5000, 200, 50
RIGHT = torch.tensor([0.9, 0.88], dtype=torch.float64)  # of the two networks
APART = 0.25  # share of samples for which the second network is asked anew
UNEVEN = torch.tensor(
    [[0.70, 0.20, 0.05, 0.05], [0.05, 0.60, 0.30, 0.05], [0.10, 0.10, 0.75, 0.05], [0.25, 0.05, 0.05, 0.65]],
    dtype=torch.float64,
)
NOISES = {
    "uneven, 4 classes": UNEVEN,
    "symmetric 0.2": symmetric(10, 0.2).double(),
    "symmetric 0.5": symmetric(10, 0.5).double(),
    "pair-flip 0.45": pairflip(10, 0.45).double(),
    "MNIST's asymmetric 0.6": mnist_asymmetric(0.6).double(),
}
Found = dict[str, list[tuple[Estimate, Any]]]


def predict(clean: Tensor, right: float, classes: int, generator: torch.Generator) -> Tensor:
    """Draw what a network predicts that is right with this probability."""
    other = (clean + torch.randint(1, classes, clean.shape, generator=generator)) % classes
    return torch.where(torch.rand(clean.shape, generator=generator, dtype=torch.float64) < right, clean, other)


def draw(classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw clean classes and what both networks predict; the second has 0.88 where it is asked anew."""
    clean = torch.randint(classes, (SAMPLES,), generator=generator)
    first = predict(clean, float(RIGHT[0]), classes, generator)
    anew = torch.rand(SAMPLES, generator=generator) < APART
    right = float(RIGHT[1] - (1 - APART) * RIGHT[0]) / APART
    return clean, first, torch.where(anew, predict(clean, right, classes, generator), first)


def noisy_of(clean: Tensor, transition: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noisy labels."""
    return torch.multinomial(transition[clean], 1, generator=generator).flatten()


# T-hat


def gaussian(transition: Tensor, repetition: int, distance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw samples of Gaussian classes: log p(clean | x), noisy labels, clean ones and the place of each."""
    generator = torch.Generator().manual_seed(10**6 + repetition)
    classes = len(transition)
    clean = torch.randint(classes, (SAMPLES,), generator=generator)
    features = distance * torch.eye(classes).double()[clean]
    features = features + torch.randn(features.shape, generator=generator, dtype=torch.float64)
    index = repetition * SAMPLES + torch.arange(SAMPLES)  # of which the bootstrap's weights are made
    return (distance * features).log_softmax(dim=1), noisy_of(clean, transition, generator), clean, index


def trusted(transition: Tensor, repetition: int) -> tuple[Tensor, Tensor]:
    """Count the noisy labels of samples with known clean ones."""
    _, noisy, clean, index = gaussian(transition, repetition, 2.0)
    cells = clean * len(transition) + noisy
    counts = torch.zeros(REPLICATES + 1, transition.numel(), dtype=torch.long)
    counts.index_add_(1, cells, bootstrap_weights(index, REPLICATES).T)
    found = maximize(counts.unflatten(1, tuple(transition.shape)))
    return found[0], standard_deviation(found[1:])


def maximised(transition: Tensor, repetition: int) -> tuple[Tensor, Tensor]:
    """Take one step of expectation maximisation from the network's posteriors."""
    log_p, noisy, _, index = gaussian(transition, repetition, 3.0)
    found = maximize(expected_counts(log_p, noisy, transition, index, REPLICATES))
    return found[0], standard_deviation(found[1:])


def confident(transition: Tensor, repetition: int) -> tuple[Tensor, Tensor]:
    """Take the confident joint of held-out predictions, of classes that hardly overlap."""
    log_p, noisy, _, index = gaussian(transition, repetition, 5.0)
    estimator = ConfidentJointEstimator(len(transition), replicates=REPLICATES)
    log_noisy = (log_p.exp() @ transition).log()
    estimator.update(Predictions(log_noisy, noisy, index, held_out=torch.ones_like(noisy, dtype=torch.bool)))
    error = estimator.standard_error()
    assert error is not None
    return estimator.compute().double(), error.double()


ESTIMATES: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "T-hat of trusted labels": trusted,
    "T-hat by expectation maximisation": maximised,
    "T-hat by the confident joint": confident,
}


# Coverage


def class_conditional(
    transition: Tensor, repetitions: int, estimate: Callable[[Tensor, int], tuple[Tensor, Tensor]] | None
) -> Found:
    """Estimate accuracy, balanced accuracy, recalls, confusion and the networks' difference, again and again."""
    classes, found = len(transition), {}  # type: int, Found
    wrong = (1 - RIGHT[0]) / (classes - 1)
    confusion = ((RIGHT[0] - wrong) * torch.eye(classes).double() + wrong) / classes
    for repetition in range(repetitions):
        generator = torch.Generator().manual_seed(repetition)
        clean, first, second = draw(classes, generator)
        noisy = noisy_of(clean, transition, generator)
        counts = count_pairs(noisy, first, classes)
        known, error = (transition, None) if estimate is None else estimate(transition, repetition)
        for name, estimated, truth in (
            ("accuracy", clean_accuracy(counts, known, error), RIGHT[0]),
            ("balanced accuracy", clean_accuracy(counts, known, error, "macro"), RIGHT[0]),
            ("recall", clean_accuracy(counts, known, error, "none"), RIGHT[0]),
            ("confusion matrix", clean_confusion_matrix(counts, known, error), confusion),
            ("difference", clean_accuracy_difference(noisy, first, second, known, error), RIGHT[0] - RIGHT[1]),
        ):
            found.setdefault(name, []).append((estimated, truth))
    return found


def of_the_sample(repetitions: int) -> Found:
    """Let noise be 0.6 where the network errs and 0.15 else, and T that of all samples."""
    classes, found = 10, {}  # type: int, Found
    rates = torch.tensor([0.6, 0.15])
    mean = float(RIGHT[0] * rates[1] + (1 - RIGHT[0]) * rates[0])
    for repetition in range(repetitions):
        generator = torch.Generator().manual_seed(repetition)
        clean, first, _ = draw(classes, generator)
        right = first == clean
        flipped = torch.rand(SAMPLES, generator=generator) < rates[right.long()]
        noisy = (clean + flipped * torch.randint(1, classes, clean.shape, generator=generator)) % classes
        known = torch.arange(SAMPLES) < TRUSTED
        transition = symmetric(classes, mean).double()
        parts = ~known, known & ~right, known & right
        others, wrong, hits = (count_pairs(noisy[part], first[part], classes) for part in parts)
        found.setdefault("accuracy", []).append((clean_accuracy(others + wrong + hits, transition), RIGHT[0]))
        for name, tune in (("prediction-powered", True), ("prediction-powered, untuned", False)):
            powered = prediction_powered_accuracy(others, wrong, hits, transition, tune)
            found.setdefault(name, []).append((powered, RIGHT[0]))
        share = right[known].double().mean()
        alone = Estimate(share, (share * (1 - share) / (TRUSTED - 1)).sqrt())
        found.setdefault("trusted labels alone", []).append((alone, RIGHT[0]))
    return found


def summary(pairs: Iterable[tuple[Estimate, Any]]) -> dict[str, float]:
    """Say how often intervals cover, how wide they are, and how far estimates are off on average."""
    values, errors, covered = [], [], []
    for estimate, truth in pairs:
        low, high = estimate.interval()
        covered.append(((low <= truth) & (truth <= high)).double().mean())
        values.append((estimate.value - truth).mean())
        errors.append(estimate.standard_error.square().mean().sqrt())
    return {
        "covered": float(torch.stack(covered).mean()),
        "standard_error": float(torch.stack(errors).mean()),
        "deviation": float(torch.stack(values).std()),
        "bias": float(torch.stack(values).mean()),
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="with a known T")
    parser.add_argument("--estimates", type=int, default=400, help="with an estimated one")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "clean_accuracy.json")
    arguments = parser.parse_args()
    settings = {
        "repetitions": arguments.repetitions,
        "estimates": arguments.estimates,
        "samples": SAMPLES,
        "trusted": TRUSTED,
        "replicates": REPLICATES,
    }
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results = before["results"] if before.get("settings") == settings else {}
    for name, measure in plan(arguments.repetitions, arguments.estimates).items():
        if name not in results:
            results[name] = {estimated: summary(pairs) for estimated, pairs in measure().items()}
            write_json(arguments.output, {"environment": environment(), "settings": settings, "results": results})
    names = plan(arguments.repetitions, arguments.estimates)
    rows = [row(name, estimated, found) for name in names for estimated, found in results[name].items()]
    header = ["noise", "T", "estimate of", "covered", "standard error", "deviation", "bias", "as it should"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


def plan(repetitions: int, estimates: int) -> dict[str, Callable[[], Found]]:
    """Return what is to be measured, by name."""
    known: dict[str, Callable[[], Found]] = {
        f"{noise}; known T": partial(class_conditional, transition, repetitions, None)
        for noise, transition in NOISES.items()
    }
    estimated: dict[str, Callable[[], Found]] = {
        f"{noise}; {name}": partial(class_conditional, NOISES[noise], estimates, estimate)
        for name, estimate in ESTIMATES.items()
        for noise in ("uneven, 4 classes", "symmetric 0.2")
    }
    return known | estimated | {"noise of the sample; T of all": partial(of_the_sample, repetitions)}


def row(setting: str, name: str, found: dict[str, float]) -> list[str]:
    """Write a line of the table."""
    noise, transition = setting.split("; ")
    low, high = (0.9, 0.98) if "T-hat" in transition else (0.93, 0.97)
    verdict = "yes" if low <= round(found["covered"], 3) <= high else "no"
    if noise == "noise of the sample" and name == "accuracy":
        verdict += ": noise does not depend on the class alone"
    deviation = "-" if name in ("recall", "confusion matrix") else f"{found['deviation']:.2g}"
    numbers = [f"{found['standard_error']:.2g}", deviation, f"{found['bias']:.1g}"]
    return [noise, transition, name, f"{100 * found['covered']:.1f} %", *numbers, verdict]


if __name__ == "__main__":
    main()
