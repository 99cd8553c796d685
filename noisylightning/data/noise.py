"""Label noise: what corrupts clean labels, and the record of what came of it.

Labels are corrupted once, all at once, from an explicit seed. The noisy label of a sample is therefore a function of
the seed and of the sample's place in the data set, never of the batch, worker or rank that reads it.

Throughout, ``T[i, j] = p(noisy = j | clean = i)``: rows sum to one.
"""

import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning._files import written_whole
from noisylightning.data._random import seeded_generator
from noisylightning.data.view import Inputs
from noisylightning.transition import from_flips, load_transition, pairflip, symmetric, validate_transition


def check_labels(labels: Tensor, num_classes: int, *, what: str = "labels") -> Tensor:
    """Check that labels are class numbers and that every class occurs.

    Args:
        labels: Integer tensor of shape (N,).
        num_classes: Number of classes C.
        what: What to call the labels in an error.

    Returns:
        The labels as an int64 tensor.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If the shape is not (N,), a label is outside 0..C-1, or a class has no sample.

    Example:
        >>> check_labels(torch.tensor([0, 1, 1], dtype=torch.uint8), 2)
        tensor([0, 1, 1])
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{what} must be integers in 0..{num_classes - 1}, got {labels.dtype}: convert them first.")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"{what} must have shape (N,) with N > 0, got {tuple(labels.shape)}; pass one label a sample.")
    labels = labels.to(torch.int64)
    outside = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{what} must lie in 0..{num_classes - 1}, got {int(labels[first])} at sample {first}; "
            "check the labels or num_classes."
        )
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(
            f"{what} hold no sample of class {int(empty[0])} (of {num_classes} classes); "
            "drop the class or add samples of it."
        )
    return labels


class LabelNoise(ABC):
    """What corrupts labels.

    A subclass draws all noisy labels at once in :meth:`corrupt` and says in :meth:`transition` which T it asks for.

    Attributes:
        rate: The rate asked for, as the noise's own definition counts it; None where it asks for none.
    """

    rate: float | None = None

    @abstractmethod
    def transition(self, num_classes: int) -> Tensor | None:
        """The T that this noise asks for.

        Args:
            num_classes: Number of classes C.

        Returns:
            T of shape (C, C), or None where the noise is no function of the class alone.
        """

    @abstractmethod
    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Draw one noisy label for each clean one.

        Args:
            labels: Clean labels, int64, shape (N,).
            num_classes: Number of classes C.
            generator: CPU generator, the only source of chance.
            inputs: The N inputs, for noise that depends on them.

        Returns:
            Noisy labels, int64, shape (N,).
        """


def sample_noisy_labels(labels: Tensor, transition: Tensor, generator: torch.Generator) -> Tensor:
    """Draw y' ~ T[y] for every label y by inverting the row's distribution function.

    Args:
        labels: Clean labels, int64, shape (N,).
        transition: Row-stochastic T of shape (C, C).
        generator: CPU generator.

    Returns:
        Noisy labels, int64, shape (N,).

    Example:
        >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sample_noisy_labels(torch.tensor([0, 1, 1]), swap, torch.Generator().manual_seed(0))
        tensor([1, 0, 0])
    """
    cdf = transition.to("cpu", torch.float64).cumsum(dim=1)
    cdf = cdf / cdf[:, -1:]  # so that u < 1 never falls beyond the last class
    u = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    noisy = torch.empty_like(labels)
    for c in range(len(cdf)):  # by class: no (N, C) tensor, which a thousand classes could not afford
        of_class = (labels == c).nonzero().flatten()
        noisy[of_class] = torch.searchsorted(cdf[c], u[of_class], right=True)
    return noisy


class ClassConditionalNoise(LabelNoise):
    """Noise whose T is all there is to it: ``y' ~ T[y]``, whatever the input."""

    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Draw y' ~ T[y], see :meth:`LabelNoise.corrupt`."""
        transition = self.transition(num_classes)
        assert transition is not None
        return sample_noisy_labels(labels, transition, generator)


class SymmetricNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes one of the other C - 1, all equally likely.

    Args:
        rate: Share of labels made wrong, in [0, 1].

    Example:
        >>> SymmetricNoise(0.2).transition(3)
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]])
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        return symmetric(num_classes, self.rate)


class PairFlipNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes the next class, the last the first.

    Args:
        rate: Share of labels made wrong, in [0, 1].

    Example:
        >>> PairFlipNoise(0.4).transition(3)
        tensor([[0.6000, 0.4000, 0.0000],
                [0.0000, 0.6000, 0.4000],
                [0.4000, 0.0000, 0.6000]])
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        return pairflip(num_classes, self.rate)


class AsymmetricNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes the class that its own is mistaken for.

    Args:
        rate: Probability of the flip for the classes in the map, in [0, 1]; other classes stay clean.
        flips: ``{class: mistaken for}`` or ``{class: {mistaken for: weight}}``. None takes the map that the paper
            gives for the data set, see :meth:`NoisyDataModule.asymmetric_transition`.

    Example:
        >>> AsymmetricNoise(0.3, flips={0: 1}).transition(2)
        tensor([[0.7000, 0.3000],
                [0.0000, 1.0000]])
    """

    def __init__(self, rate: float, flips: dict[int, int | dict[int, float]] | None = None) -> None:
        self.rate = rate
        self.flips: Mapping[int, int | Mapping[int, float]] | None = flips

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        if self.flips is None:
            raise ValueError(
                "AsymmetricNoise(flips=None) takes the flips of a known data set, and this data has none of its own; "
                "give flips, for example {0: 1}."
            )
        return from_flips(num_classes, self.flips, self.rate)


class TransitionNoise(ClassConditionalNoise):
    """Noise by a given T, for example one measured elsewhere.

    Args:
        transition: T of shape (C, C), row-stochastic, or the path of a ``.npy`` or ``.csv`` file that holds it.

    Example:
        >>> TransitionNoise(torch.tensor([[0.9, 0.1], [0.2, 0.8]])).transition(2)
        tensor([[0.9000, 0.1000],
                [0.2000, 0.8000]])
    """

    def __init__(self, transition: str | Path | Tensor) -> None:
        self._transition = transition if isinstance(transition, Tensor) else load_transition(transition)

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        validate_transition(self._transition, num_classes=num_classes)
        return self._transition


def labels_checksum(labels: Tensor) -> str:
    """SHA-256 of labels, by which a manifest knows the data that it was made for.

    Args:
        labels: Integer labels of shape (N,).

    Returns:
        The hexadecimal digest of the labels as little-endian 64-bit integers.

    Example:
        >>> labels_checksum(torch.tensor([0, 1]))[:8]
        '9d34149f'
    """
    return hashlib.sha256(labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def measure_transition(clean: Tensor, noisy: Tensor, num_classes: int) -> Tensor:
    """The T found between clean and noisy labels by counting.

    Args:
        clean: Clean labels, int64, shape (N,); every class occurs.
        noisy: Noisy labels, int64, shape (N,).
        num_classes: Number of classes C.

    Returns:
        T of shape (C, C): row i holds the shares of the noisy labels among the samples of clean class i.

    Example:
        >>> measure_transition(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    counts = torch.bincount(clean * num_classes + noisy, minlength=num_classes**2).view(num_classes, num_classes)
    return (counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)).to(torch.get_default_dtype())


@dataclass(frozen=True)
class NoisyLabels:
    """Noisy labels and what is known of how they came about: the manifest.

    Two people compare on the same noise by sharing the file that :meth:`save` writes.

    Attributes:
        labels: Noisy labels, int64, shape (N,).
        transition: T asked for, or, where the noise asks for none, T as measured, shape (C, C).
        seed: Seed of the draw.
        checksum: :func:`labels_checksum` of the clean labels.
        requested_rate: Share of wrong labels asked for; None where the noise asks for none.
        actual_rate: Share of wrong labels drawn.

    Example:
        >>> clean = torch.arange(1000) % 2
        >>> noisy = NoisyLabels.draw(SymmetricNoise(0.25), clean, num_classes=2, seed=0)
        >>> noisy.requested_rate, noisy.actual_rate
        (0.25, 0.259)
    """

    labels: Tensor
    transition: Tensor
    seed: int
    checksum: str
    requested_rate: float | None
    actual_rate: float

    @classmethod
    def draw(
        cls, noise: LabelNoise, clean_labels: Tensor, num_classes: int, seed: int, inputs: Inputs | None = None
    ) -> "NoisyLabels":
        """Corrupt clean labels, once.

        Args:
            noise: What corrupts them.
            clean_labels: Clean labels, integers of shape (N,).
            num_classes: Number of classes C.
            seed: Seed of the draw; the same seed gives the same labels.
            inputs: The N inputs, for noise that depends on them.

        Returns:
            The noisy labels and their record.
        """
        clean = check_labels(clean_labels, num_classes)
        asked = noise.transition(num_classes)
        noisy = noise.corrupt(clean, num_classes, seeded_generator("noise", seed), inputs)
        if asked is None:
            requested = noise.rate
        else:
            prior = torch.bincount(clean, minlength=num_classes).to(torch.float64) / len(clean)
            wrong = 1 - asked.diagonal().to(torch.float64)
            requested = round(float(prior @ wrong), 6)  # T is float32: 0.2, not 0.200000003
        return cls(
            labels=noisy,
            transition=measure_transition(clean, noisy, num_classes) if asked is None else asked,
            seed=seed,
            checksum=labels_checksum(clean),
            requested_rate=requested,
            actual_rate=float((noisy != clean).double().mean()),
        )

    def check_asked(self, noise: LabelNoise, num_classes: int, seed: int) -> None:
        """Check that this is what a noise and a seed would have drawn.

        Args:
            noise: The noise asked for.
            num_classes: Number of classes C.
            seed: The seed asked for.

        Raises:
            ValueError: If the record has another T or another seed.
        """
        asked = noise.transition(num_classes)
        if asked is not None and (asked.shape != self.transition.shape or not torch.allclose(asked, self.transition)):
            raise ValueError(
                f"the manifest holds noise at rate {self.requested_rate} with another T than the "
                f"{type(noise).__name__} asked for; remove noise to take the manifest as it is, or name another file."
            )
        if seed != self.seed:
            raise ValueError(
                f"the manifest was drawn from noise seed {self.seed}, not {seed}; give that seed or name another file."
            )

    def save(self, path: str | Path) -> None:
        """Write the manifest.

        Args:
            path: Where to, usually ``*.npz``; an existing file is replaced in one step.
        """
        content: dict[str, Any] = {
            "labels": self.labels.numpy(),
            "transition": self.transition.numpy(),
            "seed": np.int64(self.seed),
            "checksum": np.str_(self.checksum),
            "requested_rate": np.float64(np.nan if self.requested_rate is None else self.requested_rate),
            "actual_rate": np.float64(self.actual_rate),
        }
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | Path, clean_labels: Tensor) -> "NoisyLabels":
        """Read a manifest, for the data it was made for and no other.

        Args:
            path: The file that :meth:`save` wrote.
            clean_labels: The labels that were corrupted.

        Returns:
            The noisy labels and their record.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no manifest, or one of other data.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no manifest of noisy labels at {path}: save one first or check the path.")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                requested = float(content["requested_rate"])
                record = cls(
                    labels=torch.from_numpy(content["labels"]),
                    transition=torch.from_numpy(content["transition"]),
                    seed=int(content["seed"]),
                    checksum=str(content["checksum"]),
                    requested_rate=None if np.isnan(requested) else requested,
                    actual_rate=float(content["actual_rate"]),
                )
        except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a manifest of noisy labels ({error}); write it with NoisyLabels.save."
            ) from error
        found = labels_checksum(torch.as_tensor(clean_labels))
        if record.checksum != found:
            raise ValueError(
                f"The manifest {path} was made for other data: its checksum of the clean labels is "
                f"{record.checksum[:12]}..., these {len(clean_labels)} labels have {found[:12]}...; "
                "use the data it was made for or draw new noise."
            )
        return record
