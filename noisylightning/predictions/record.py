"""The one record of predictions: what a network says of each sample, beside what is known of the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.probabilities import (
    check_labels,
    check_noisy_labels,
    check_probabilities,
    not_finite,
    sum_tolerance,
)
from noisylightning.predictions.files import read_rows, write_rows
from noisylightning.tensors import log_softmax

ROWS = 2**16  # of a large table are looked at, written and gathered at a time


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions for N samples and C classes, and what is known of the samples; checked once, on construction.

    The network's own scores are kept and nothing is rounded twice: ``probs`` is their softmax, ``log_probs`` their
    log-softmax. Log-probabilities are scores too; from probabilities make it by :meth:`from_probs`.

    A file holds an array (``.npz``) or a column (``.parquet``) for each field: one of ``log_probs``, ``probs`` and
    ``logits``, of shape ``(N, C)`` (in Parquet a list a row); ``noisy_labels``; and whatever is known of the others.
    In place of numbers, labels may be names where the file says the order of the classes: ``class_names``, an array
    (``.npz``) or in the schema's metadata, as JSON (``.parquet``).

    Args:
        logits: log p(noisy | x) up to a constant in each row, floating, shape ``(N, C)``.
        noisy_labels: Labels as they are written down, integers, shape ``(N,)``, -1 where only the clean one is known;
            or ``(N, annotators)``, -1 where one gave none.
        index: Places of the samples in their data set, shape ``(N,)``, -1 where unknown; by default 0 to N - 1.
        held_out: Whether the network was trained without the sample, bool, shape ``(N,)``; by default for none.
        features: What the network's last layer reads, floating, shape ``(N, D)``.
        clean_labels: Labels known to be right, integers, shape ``(N,)``, -1 where unknown.
        class_names: The C names.

    Raises:
        TypeError: If a field is of the wrong dtype.
        ValueError: If a shape or a value is out of bounds.

    Example:
        >>> predictions = Predictions(torch.zeros(4, 2), noisy_labels=torch.tensor([0, 1, 1, 0]))
        >>> predictions.probs[0]
        tensor([0.5000, 0.5000])
        >>> [len(batch) for batch in predictions.split(3)]
        [3, 1]
    """

    logits: Tensor
    noisy_labels: Tensor
    index: Tensor = None  # type: ignore[assignment]  # made on construction
    held_out: Tensor = None  # type: ignore[assignment]  # made on construction
    features: Tensor | None = None
    clean_labels: Tensor | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check_logits()
        num, device = len(self), self.logits.device
        self._set("logits", self.logits.detach())
        if self.index is None:
            self._set("index", torch.arange(num, device=device))
        if self.held_out is None:
            self._set("held_out", torch.zeros(num, dtype=torch.bool, device=device))
        self._check_labels()
        if self.held_out.dtype != torch.bool:
            raise BadType(f"held_out must be bool, got {self.held_out.dtype}.")
        for name in ("index", "held_out", "clean_labels"):
            value: Tensor | None = getattr(self, name)
            if value is not None and value.shape != (num,):
                raise BadValue(f"{name} must be of shape ({num},), one entry a prediction, got {tuple(value.shape)}.")
        if self.features is not None:
            if not self.features.is_floating_point():
                raise BadType(f"features must be floating point, got {self.features.dtype}.")
            if self.features.ndim != 2 or len(self.features) != num:
                raise BadValue(f"features must be of shape ({num}, D), got {tuple(self.features.shape)}.")
            if num and not self.features.sum(dim=1).isfinite().all():
                raise BadValue("features must be finite, but a row holds NaN or infinity.")
        if self.class_names is not None:
            self._set("class_names", tuple(map(str, self.class_names)))
            if len(set(self.class_names)) != self.num_classes:
                raise BadValue(f"class_names must be {self.num_classes} different names, got {self.class_names}.")
        for name, tensor in self._tensors():
            if tensor.device != device:
                raise BadValue(
                    f"{name} is on {tensor.device} but the logits are on {device}: bring both to one device."
                )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the one way into a frozen dataclass

    def _check_logits(self) -> None:
        logits = self.logits
        if not logits.is_floating_point():
            raise BadType(f"logits must be floating point, got {logits.dtype}: pass the network's scores.")
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise BadValue(f"logits must be of shape (N, C) with C at least 2, got {tuple(logits.shape)}.")
        largest = logits.amax(dim=1)  # NaN where a row has one; -inf where all of it is
        if not largest.isfinite().all():
            raise not_finite(~largest.isfinite())

    def _check_labels(self) -> None:
        if self.noisy_labels.ndim == 2:
            check_labels(self.noisy_labels, self.num_classes, "noisy labels", lowest=-1)
            if len(self.noisy_labels) != len(self):
                raise BadValue(
                    f"There are {len(self)} predictions and noisy labels of {len(self.noisy_labels)} samples."
                )
        else:
            trusted = self.clean_labels is not None  # their noisy labels may be unknown
            check_noisy_labels(self.noisy_labels, len(self), self.num_classes, lowest=-1 if trusted else 0)
        self._set("noisy_labels", self.noisy_labels.long())
        if self.clean_labels is not None:
            check_labels(self.clean_labels, self.num_classes, "clean labels", lowest=-1)
            self._set("clean_labels", self.clean_labels.long())
            if self.noisy_labels.ndim == 1 and self.clean_labels.shape == self.noisy_labels.shape:
                neither = (self.noisy_labels < 0) & (self.clean_labels < 0)
                if neither.any():
                    raise BadValue(
                        "A sample must have a noisy label or a clean one, but the sample in row"
                        f" {int(neither.nonzero()[0])} has neither (-1): leave it out."
                    )
        if self.index.is_floating_point() or self.index.dtype == torch.bool:
            raise BadType(f"index must be integers, got {self.index.dtype}.")
        self._set("index", self.index.long())

    @classmethod
    def from_probs(cls, probs: Tensor, noisy_labels: Tensor, **others: Any) -> Predictions:
        """Make the record from probabilities.

        Args:
            probs: p(noisy | x), floating, shape ``(N, C)``, rows sum to one.
            noisy_labels: As in :class:`Predictions`.
            **others: The other fields.

        Returns:
            The record.

        Raises:
            TypeError: If the probabilities are not floating point, or as in :class:`Predictions`.
            ValueError: If they are none, or as in :class:`Predictions`.

        Example:
            >>> Predictions.from_probs(torch.tensor([[0.8, 0.2]]), torch.tensor([0])).probs
            tensor([[0.8000, 0.2000]])
        """
        check_probabilities(probs)
        return cls(probs.to(torch.promote_types(probs.dtype, torch.float32)).log(), noisy_labels, **others)

    @property
    def probs(self) -> Tensor:
        """p(noisy | x), ``(N, C)``, in float32 at least."""
        return self.logits.softmax(dim=1, dtype=torch.promote_types(self.logits.dtype, torch.float32))

    @property
    def log_probs(self) -> Tensor:
        """The logarithm of p(noisy | x), ``(N, C)``, in float32 at least."""
        return log_softmax(self.logits)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.logits.shape[1]

    @property
    def known(self) -> frozenset[str]:
        """What is known beyond predictions and labels: of "features", "clean_labels" and "held_out"."""
        known = {name for name in ("features", "clean_labels") if getattr(self, name) is not None}
        return frozenset(known | {"held_out"} if self.held_out.any() else known)

    def __len__(self) -> int:
        return len(self.logits)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {tuple(tensor.shape)}" for name, tensor in self._tensors())
        return f"Predictions({shapes})"

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Tensor)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Predictions:
        """Change every tensor in a way that leaves rows as good as they were: they are not checked again."""
        changed = object.__new__(Predictions)
        vars(changed).update(vars(self))
        vars(changed).update({name: change(tensor) for name, tensor in self._tensors()})
        return changed

    def select(self, places: Tensor | slice) -> Predictions:
        """Return some of the rows.

        Args:
            places: Their places in this record (not their ``index``), a mask of shape ``(N,)``, or a slice.

        Returns:
            The rows in that order; a slice shares memory with the whole.
        """
        return self._each(lambda tensor: tensor[places])

    def split(self, size: int) -> Iterator[Predictions]:
        """Yield batches of at most ``size`` rows, which share memory with the whole."""
        for start in range(0, len(self), size):
            yield self.select(slice(start, start + size))

    def to(self, device: torch.device | str) -> Predictions:
        """Return the record on another device."""
        return self._each(lambda tensor: tensor.to(device))

    @classmethod
    def concatenate(cls, parts: Iterable[Predictions]) -> Predictions:
        """Join records of the same fields.

        Args:
            parts: The records, at least one.

        Returns:
            Their rows, one record after the other.

        Raises:
            ValueError: If there is none, or they do not have the same fields and classes.
        """
        parts = list(parts)
        kinds = {(part.num_classes, part.class_names, tuple(name for name, _ in part._tensors())) for part in parts}
        if len(kinds) != 1:
            raise BadValue(
                "Predictions can be joined where there are some and all have the same fields and classes, got"
                f" {'; '.join(map(repr, parts)) or 'none'}."
            )
        columns = zip(*(part._tensors() for part in parts), strict=True)
        joined = object.__new__(cls)
        vars(joined).update(vars(parts[0]))
        vars(joined).update({column[0][0]: torch.cat([tensor for _, tensor in column]) for column in columns})
        return joined

    def save(self, path: str | Path) -> None:
        """Write a ``.npz`` or ``.parquet`` file, a part of the rows at a time.

        Args:
            path: The file; its suffix tells the format.

        Raises:
            ValueError: If it has another suffix.
            ModuleNotFoundError: If it is Parquet and pyarrow is not installed.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "predictions.npz"
            >>> Predictions(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])).save(path)
            >>> Predictions.load(path)
            Predictions(logits: (4, 2), noisy_labels: (4,), index: (4,), held_out: (4,))
        """
        write_rows(path, map(Predictions._arrays, self.split(ROWS) if len(self) else [self]), self.class_names)

    def _arrays(self) -> dict[str, np.ndarray]:
        tensors = dict(self._tensors())
        named = {"log_probs": self.log_probs, **{name: tensors[name] for name in tensors if name != "logits"}}
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read a file, of :meth:`save` or from elsewhere.

        Large arrays of a ``.npz`` that is not compressed stay on the disk until they are used, all but ``probs``, of
        which the logarithm is taken; Parquet is read into memory.

        Args:
            path: The ``.npz`` or ``.parquet`` file.

        Returns:
            The record, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If a field is of the wrong dtype.
            ValueError: If the file is damaged, a field is missing or unknown, or its content out of bounds.
            ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
        """
        arrays, class_names = read_rows(path)
        try:
            return cls._of_arrays(arrays, class_names)
        except (BadValue, BadType) as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def _of_arrays(cls, arrays: dict[str, np.ndarray], class_names: Sequence[str] | None) -> Predictions:
        scores = [name for name in ("log_probs", "probs", "logits") if name in arrays]
        if len(scores) != 1 or "noisy_labels" not in arrays:
            raise BadValue(
                "One of log_probs, probs and logits is needed, and noisy_labels, but there is"
                f" {', '.join(arrays) or 'nothing'}."
            )
        unknown = sorted(arrays.keys() - {"noisy_labels", "index", "held_out", "features", "clean_labels", *scores})
        if unknown:
            raise BadValue(
                f"{', '.join(unknown)} is none of its fields: leave it out, or name it as one of index, held_out,"
                " features and clean_labels."
            )
        for name in ("noisy_labels", "clean_labels"):
            if name in arrays and arrays[name].dtype.kind in "UO":
                arrays[name] = _numbers(arrays[name], class_names, name)
        others: dict[str, Any] = {name: _tensor(array, name) for name, array in arrays.items()}
        others["class_names"] = class_names
        table = others.pop(scores[0])
        if scores == ["probs"]:
            return cls.from_probs(table, **others)
        found = cls(table, **others)
        if scores == ["log_probs"]:
            _require_normalized(found)
        return found


def _tensor(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise BadType(f"{what} must be numbers, got {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    # In the machine's byte order; and torch takes no array that is read-only, as Parquet's are.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable))


def _require_normalized(predictions: Predictions) -> None:
    for part in predictions.split(ROWS):
        off = (part.logits.exp().sum(dim=1, dtype=torch.float64) - 1).abs()
        if not (off <= sum_tolerance(part.logits.dtype)).all():
            raise BadValue(
                f"log_probs must be logarithms of rows that sum to one, but one is off by {float(off.max()):.4g}: name"
                " them logits if they are a network's scores."
            )


def _numbers(labels: np.ndarray, class_names: Sequence[str] | None, what: str) -> np.ndarray:
    """Turn labels by name into class indices."""
    if class_names is None:
        raise BadType(
            f"{what} are names, such as {str(labels.flat[0])!r}, and nothing says in which order the classes are: add"
            " class_names to the file, or write class indices from 0."
        )
    place = {name: i for i, name in enumerate(class_names)}
    unknown = sorted({str(label) for label in labels.flat} - place.keys())
    if unknown:
        raise BadValue(f"{what} hold {unknown[0]!r}, which is not among the class_names {', '.join(class_names)}.")
    return np.array([place[str(label)] for label in labels.flat], dtype=np.int64).reshape(labels.shape)
