"""Noisy labels, how they came about, and which data they belong to."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.data._random import seeded_generator
from noisylightning.data.noise import LabelNoise, check_labels, measure_transition
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchFile


def labels_checksum(labels: Tensor) -> str:
    """SHA-256 of labels, by which noisy labels know the data that they were drawn for.

    Args:
        labels: Integer labels of shape (N,).

    Returns:
        The hexadecimal digest of the labels as little-endian 64-bit integers.

    Example:
        >>> labels_checksum(torch.tensor([0, 1]))[:8]
        '9d34149f'
    """
    return hashlib.sha256(labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class NoisyLabels:
    """Noisy labels and what is known of how they came about.

    Two people compare on the same noise by sharing the file that :meth:`save` writes.

    Attributes:
        labels: Noisy labels, int64, shape (N,).
        transition: T asked for, or, where the noise asks for none, T as measured, shape (C, C).
        noise: The noise and its arguments, as text.
        seed: Seed of the draw.
        checksum: :func:`labels_checksum` of the clean labels.
        requested_rate: Share of wrong labels asked for; None where the noise asks for none.
        actual_rate: Share of wrong labels drawn.

    Example:
        >>> from noisylightning.data.noise import SymmetricNoise
        >>> clean = torch.arange(1000) % 2
        >>> noisy = NoisyLabels.draw(SymmetricNoise(0.25), clean, num_classes=2, seed=0)
        >>> noisy.requested_rate, noisy.actual_rate
        (0.25, 0.259)
    """

    labels: Tensor
    transition: Tensor
    noise: str
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
            The noisy labels.
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
            noise=repr(noise),
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
            ValueError: If these have another noise, T or seed.
        """
        asked = noise.transition(num_classes)
        same = asked is None or (asked.shape == self.transition.shape and torch.allclose(asked, self.transition))
        if repr(noise) != self.noise or not same:
            raise BadValue(
                f"The file of noisy labels holds labels by {self.noise} and not by the {noise!r} asked for: leave "
                "noise (--data.noise) out to take the file as it is, or set noisy_labels_file "
                "(--data.noisy_labels_file) to another."
            )
        if seed != self.seed:
            raise BadValue(
                f"The file of noisy labels was drawn from noise seed {self.seed}, not {seed}: set noise_seed "
                f"(--data.noise_seed) to {self.seed} or noisy_labels_file (--data.noisy_labels_file) to another."
            )

    def save(self, path: str | Path) -> None:
        """Write the file.

        Args:
            path: Where to, usually ``*.npz``; an existing file is replaced in one step.
        """
        content: dict[str, Any] = {
            "labels": self.labels.numpy(),
            "transition": self.transition.numpy(),
            "noise": np.str_(self.noise),
            "seed": np.int64(self.seed),
            "checksum": np.str_(self.checksum),
            "requested_rate": np.float64(np.nan if self.requested_rate is None else self.requested_rate),
            "actual_rate": np.float64(self.actual_rate),
        }
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **content)

    @classmethod
    def load(cls, path: str | Path, clean_labels: Tensor) -> "NoisyLabels":
        """Read a file of noisy labels, for the data it was drawn for and no other.

        Args:
            path: The file that :meth:`save` wrote.
            clean_labels: The labels that were corrupted.

        Returns:
            The noisy labels.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is of another kind, or its labels are of other data.
        """
        path = Path(path)
        if not path.is_file():
            raise NoSuchFile(
                f"There are no noisy labels at {path}: write them by NoisyLabels.save or correct the path."
            )
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                requested = float(content["requested_rate"])
                noisy = cls(
                    labels=torch.from_numpy(content["labels"]),
                    transition=torch.from_numpy(content["transition"]),
                    noise=str(content["noise"]),
                    seed=int(content["seed"]),
                    checksum=str(content["checksum"]),
                    requested_rate=None if np.isnan(requested) else requested,
                    actual_rate=float(content["actual_rate"]),
                )
        except (KeyError, ValueError, TypeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise BadValue(
                f"{path} is not a file of noisy labels ({error}); write it by NoisyLabels.save or correct the path."
            ) from error
        found = labels_checksum(torch.as_tensor(clean_labels))
        if noisy.checksum != found:
            raise BadValue(
                f"The file of noisy labels {path} was made for other data: its checksum of the clean labels is "
                f"{noisy.checksum[:12]}..., these {len(clean_labels)} labels have {found[:12]}...; "
                "use the data it was made for, or set noisy_labels_file (--data.noisy_labels_file) to another file."
            )
        return noisy
