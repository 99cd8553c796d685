"""Noise that people made: labels from a file, and the confusion measured in it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.data.noise import ClassConditionalNoise, LabelNoise, check_labels, measure_transition
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchFile


def read_human_labels(path: str | Path) -> dict[str, Tensor]:
    """Read arrays of labels by name, from an ``.npz`` or from the ``.pt`` that the authors of CIFAR-N published.

    Args:
        path: The file; nothing in it is run.

    Returns:
        Its arrays of integers, by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither, or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise NoSuchFile(
            f"There are no human labels at {path}; correct path (--data.noise.path), or human_file (--data.human_file)."
        )
    try:
        content = _read_pt(path) if path.suffix == ".pt" else _read_npz(path)
    except pickle.UnpicklingError as error:
        raise BadValue(f"{path} holds more than arrays of labels: take the authors' file or an .npz.") from error
    # a broken archive fails in as many ways as the two libraries have
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BadValue(f"{path} is truncated or holds no arrays of labels ({reason}): fetch it again.") from error
    return {name: torch.as_tensor(values).long() for name, values in content.items() if np.ndim(values) == 1}


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        return dict(content)


def _read_pt(path: Path) -> dict[str, Any]:
    reconstruct = np.empty(0).__reduce__()[0]
    integers = [type(np.dtype(name)) for name in ("uint8", "int32", "int64")]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")  # numpy 1 and 2
    allowed: list[Any] = [*((reconstruct, name) for name in names), np.ndarray, np.dtype, *integers]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, weights_only=True)


class HumanNoise(LabelNoise):
    """The labels that people gave, read from a file.

    T is not asked for but measured.

    Args:
        path: An ``.npz``, or the ``.pt`` of CIFAR-10N or CIFAR-100N (Wei et al. 2022).
        key: Name of the array of human labels, for example ``"worse_label"``.
        clean_key: Name of the array of clean labels, by which the data is recognised.

    Raises:
        ValueError: When labels are corrupted, if the file was made for others.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "human.npz"
        >>> np.savez(path, clean_label=[0, 0, 1, 1], human=[0, 1, 1, 1])
        >>> noise = HumanNoise(path, key="human")
        >>> noise.corrupt(torch.tensor([0, 0, 1, 1]), num_classes=2, generator=torch.Generator())
        tensor([0, 1, 1, 1])
    """

    def __init__(self, path: str | Path, key: str, clean_key: str = "clean_label") -> None:
        self._path = Path(path)  # private: where a file lies does not tell one noise from another
        self.key = key
        self.clean_key = clean_key

    def transition(self, num_classes: int) -> None:
        """None: it is measured, not asked for."""

    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Read the noisy labels, see :meth:`LabelNoise.corrupt`; nothing is drawn."""
        clean, human = self.read(num_classes)
        if not torch.equal(clean, labels):
            differ = "" if len(clean) != len(labels) else f", {int((clean != labels).sum())} of them differ"
            raise BadValue(
                f"{self._path} was made for other data: its {len(clean)} clean labels are not the {len(labels)} labels "
                f"at hand{differ}; use the data set that it was made for, in its original order."
            )
        return human

    def read(self, num_classes: int) -> tuple[Tensor, Tensor]:
        """Read clean and human labels.

        Args:
            num_classes: Number of classes C.

        Returns:
            Clean and human labels, int64, shape (N,) each.
        """
        content = read_human_labels(self._path)
        for key in (self.clean_key, self.key):
            if key not in content:
                raise BadValue(
                    f"{self._path} has no labels named {key!r}: choose from {sorted(content)} and set key "
                    "(--data.noise.key) or clean_key (--data.noise.clean_key)."
                )
        clean, human = (
            check_labels(content[key], num_classes, f"{self._path}'s {key}") for key in (self.clean_key, self.key)
        )
        if len(clean) != len(human):
            raise BadValue(
                f"{self._path} has {len(clean)} labels {self.clean_key!r} and {len(human)} {self.key!r}: choose key "
                "(--data.noise.key) and clean_key (--data.noise.clean_key) of one data set."
            )
        return clean, human


class ConfusionNoise(ClassConditionalNoise):
    """Class-conditional noise by the T that :class:`HumanNoise` measures: the same confusions, at random.

    Args:
        path: File of clean and human labels, see :class:`HumanNoise`.
        key: Name of the array of human labels.
        clean_key: Name of the array of clean labels.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "human.npz"
        >>> np.savez(path, clean_label=[0, 0, 1, 1], human=[0, 1, 1, 1])
        >>> ConfusionNoise(path, key="human").transition(2)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """

    def __init__(self, path: str | Path, key: str, clean_key: str = "clean_label") -> None:
        self.human = HumanNoise(path, key, clean_key)

    def transition(self, num_classes: int) -> Tensor:
        """The T measured in the file, see :meth:`LabelNoise.transition`."""
        return measure_transition(*self.human.read(num_classes), num_classes)
