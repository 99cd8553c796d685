"""Measure the test that noise depends on the class alone: how often it alarms falsely, and when it should.

    python benchmarks/verdict.py --data-dir DATA [--features FOLDER]

For each noise, networks are trained on the frozen inputs as a fit with refinement does it: two, each on one half, with
T in a forward-corrected loss, from whose predictions of the other half T-hat is made by expectation maximisation; and
one on all training samples, with that T-hat, whose predictions and features of held-out samples the test sees.
Where noise depends on the class alone, labels are drawn anew 200 times, those of the training half for T-hat as well as
the held-out ones, networks staying as they are; where it does not, in as many seeds as are asked for, all is done anew.

The inputs are MNIST's, and, with ``--features``, those of the folder that ``noisylightning features --data
CIFAR10NDataModule`` has left, for which ``cifar10n.npz`` in the data folder has the labels people gave. Writes
``benchmarks/results/verdict.json`` after each row, and ``verdict.md``; rows that are in the file are not run again.
"""

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, write_json, write_table
from torch import Tensor, nn

from noisylightning.data import FeaturesDataModule, InstanceDependentNoise, MNISTDataModule
from noisylightning.functional import forward_cross_entropy
from noisylightning.functional.class_conditional import class_conditional_test
from noisylightning.functional.expectation_maximization import expected_counts, maximize
from noisylightning.models import with_features
from noisylightning.transition import cifar10_asymmetric, mnist_asymmetric, pairflip, relative_l1_error, symmetric

CLASSES = 10
HELD_OUT = 0.1
LEVEL = 0.05
REPLICATES = 199
INSTANCE = ("instance-dependent 0.2", "instance-dependent 0.4")
HUMAN = ("CIFAR-10N aggregate", "CIFAR-10N worst")
LABELS_OF = dict(zip(HUMAN, ("aggre_label", "worse_label"), strict=True))


def transitions(asymmetric: Any) -> dict[str, Tensor]:
    """Return the T of each noise that depends on the class alone."""
    return {
        "symmetric 0.2": symmetric(CLASSES, 0.2),
        "symmetric 0.5": symmetric(CLASSES, 0.5),
        "asymmetric 0.2": asymmetric(0.2),
        "asymmetric 0.6": asymmetric(0.6),
        "pair-flip 0.45": pairflip(CLASSES, 0.45),
    }


def network(width: int, seed: int) -> nn.Module:
    """Make a small network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, CLASSES))


def train(net: nn.Module, inputs: Tensor, labels: Tensor, transition: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train with forward correction by T."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(256):
            optimizer.zero_grad(set_to_none=True)
            forward_cross_entropy(net(inputs[batch]), labels[batch], transition).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def predicted(net: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and features."""
    scores, features = zip(*map(with_features(net), inputs.split(4096)), strict=True)
    return torch.cat(scores), torch.cat(features)


def draw(transition: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noisy labels."""
    return torch.multinomial(transition[clean], 1, generator=generator).flatten()


def counted(clean: Tensor, noisy: Tensor) -> Tensor:
    """Return the T that labels have on average."""
    table = torch.zeros(CLASSES, CLASSES).index_put((clean, noisy), torch.tensor(1.0), accumulate=True)
    return table / table.sum(dim=1, keepdim=True)


def estimate(scores: Tensor, labels: Tensor, transition: Tensor) -> tuple[Tensor, Tensor]:
    """Take a step of expectation maximisation; return T-hat and its standard error by the number of samples."""
    counts = expected_counts(scores, labels, transition)[0]
    found = maximize(counts)
    return found, (found * (1 - found) / counts.sum(dim=1, keepdim=True)).sqrt()


class Fitted:
    """What a fit leaves: predictions of halves that networks have not seen, and of held-out samples."""

    def __init__(self, inputs: Tensor, clean: Tensor, noisy: Tensor, epochs: int, seed: int) -> None:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        held_out, rest = order.split([int(HELD_OUT * len(inputs)), len(inputs) - int(HELD_OUT * len(inputs))])
        halves = rest.chunk(2)
        transition = 0.98 * counted(clean, noisy) + 0.02 / CLASSES
        nets = [network(inputs.shape[1], seed + k) for k in range(2)]
        for passed in (epochs, epochs // 2):
            for net, half in zip(nets, halves, strict=True):
                train(net, inputs[half], noisy[half], transition, passed, seed)
            self.scores = torch.cat(
                [predicted(net, inputs[half])[0] for net, half in zip(nets, halves[::-1], strict=True)]
            )
            self.trained_on = torch.cat(halves[::-1])
            self.start = transition
            transition, self.error = estimate(self.scores, noisy[self.trained_on], transition)
            transition = transition.float()
        self.transition, self.held_out = transition, held_out
        last = train(network(inputs.shape[1], seed + 2), inputs[rest], noisy[rest], transition, epochs, seed)
        self.logits, self.features = predicted(copy.deepcopy(last), inputs[held_out])
        self.accuracy = float((self.logits.argmax(dim=1) == clean[held_out]).float().mean())

    def test(self, labels: Tensor, transition: Tensor, error: Tensor | None, seed: int) -> float:
        """Return the p-value."""
        return class_conditional_test(
            self.logits, labels, self.features, transition, error, replicates=REPLICATES, seed=seed
        ).p_value


def false_alarms(inputs: Tensor, clean: Tensor, transition: Tensor, epochs: int, repetitions: int) -> dict[str, Any]:
    """Draw labels many times for one set of networks."""
    generator = torch.Generator().manual_seed(0)
    fit = Fitted(inputs, clean, draw(transition, clean, generator), epochs, seed=0)
    found: dict[str, list[float]] = {"T-hat": [], "T": []}
    for repetition in range(repetitions):
        labels = draw(transition, clean, generator)
        estimated, error = estimate(fit.scores, labels[fit.trained_on], fit.transition)
        found["T-hat"].append(fit.test(labels[fit.held_out], estimated, error, repetition))
        found["T"].append(fit.test(labels[fit.held_out], transition, None, repetition))
    return {"p_values": found, "accuracy": fit.accuracy, "error": float(relative_l1_error(fit.transition, transition))}


def power(inputs: Tensor, clean: Tensor, noisy: list[Tensor], epochs: int) -> dict[str, Any]:
    """Test labels whose noise depends on more than the class; the T of theirs is that on average."""
    found: dict[str, list[float]] = {"T-hat": [], "T": []}
    accuracies, errors = [], []
    for seed, labels in enumerate(noisy):
        fit, average = Fitted(inputs, clean, labels, epochs, seed), counted(clean, labels)
        found["T-hat"].append(fit.test(labels[fit.held_out], fit.transition, fit.error, seed))
        found["T"].append(fit.test(labels[fit.held_out], average, None, seed))
        accuracies.append(fit.accuracy)
        errors.append(float(relative_l1_error(fit.transition, average)))
    return {"p_values": found, "accuracy": float(np.mean(accuracies)), "error": float(np.mean(errors))}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("NOISYLIGHTNING_DATA", "data")))
    parser.add_argument("--features", type=Path, help="folder of features of CIFAR-10's images")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "verdict.json")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", help="rows whose name has this in it")
    arguments = parser.parse_args()
    content = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"rows": {}}
    content |= {"environment": environment(), "repetitions": arguments.repetitions, "seeds": arguments.seeds}
    sources: dict[str, Any] = {"MNIST": mnist}
    if arguments.features is not None:
        sources["CIFAR-10 features"] = cifar
    for source, read in sources.items():
        names = [*transitions(mnist_asymmetric), *(INSTANCE if source == "MNIST" else HUMAN)]
        missing = [
            name
            for name in names
            if f"{source}, {name}" not in content["rows"] and (arguments.only or "") in f"{source}, {name}"
        ]
        inputs, clean, people = read(arguments) if missing else (torch.empty(0), torch.empty(0), {})
        known = transitions(mnist_asymmetric if source == "MNIST" else cifar10_asymmetric)
        for name in missing:
            start = time.perf_counter()
            if name in known:
                row = false_alarms(inputs, clean, known[name], arguments.epochs, arguments.repetitions)
            elif name in HUMAN:
                row = power(inputs, clean, [people[name]] * arguments.seeds, arguments.epochs)
            else:
                noise = InstanceDependentNoise(float(name.split()[-1]))
                draws = [torch.Generator().manual_seed(seed) for seed in range(arguments.seeds)]
                labels = [noise.corrupt(clean, CLASSES, generator, inputs) for generator in draws]
                row = power(inputs, clean, labels, arguments.epochs)
            content["rows"][f"{source}, {name}"] = row | {"seconds": time.perf_counter() - start}
            write_json(arguments.output, content)
            write_table(arguments.output.with_suffix(".md"), *table(content["rows"]))


def mnist(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Read the training images, flat."""
    images, labels = MNISTDataModule(arguments.data_dir).load_train()
    pixels = images.flatten(1).float()
    return (pixels - pixels.mean()) / pixels.std(), labels.long(), {}


def cifar(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Read the features, on their 256 first principal axes, and the labels people gave."""
    inputs, labels = FeaturesDataModule(arguments.features).load_train()
    features, clean = inputs.float(), labels.long()
    centred = features - features.mean(dim=0)
    reduced = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -256:]
    with np.load(arguments.data_dir / "cifar10n.npz", allow_pickle=False) as file:
        if not np.array_equal(file["clean_label"][: len(clean)], clean.numpy()):
            raise SystemExit(f"{arguments.features} is not in the order of CIFAR-10's training images.")
        people = {name: torch.from_numpy(file[key][: len(clean)]).long() for name, key in LABELS_OF.items()}
    return reduced / reduced.std(), clean, people


def table(rows: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Make a line of each noise."""
    header = ["data, noise", "tests", "alarms with T-hat", "alarms with T", "median p", "accuracy", "error of T-hat"]
    lines = []
    for name, row in rows.items():
        estimated, known = (np.array(row["p_values"][key]) for key in ("T-hat", "T"))
        shares = [f"{100 * (values <= LEVEL).mean():.1f} %" for values in (estimated, known)]
        middle = f"{np.median(estimated):.3f}"
        lines.append([name, str(len(known)), *shares, middle, f"{100 * row['accuracy']:.1f} %", f"{row['error']:.3f}"])
    return header, lines


if __name__ == "__main__":
    main()
