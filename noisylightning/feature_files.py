"""A folder of features: one memory-mapped file for each part of a data set, and a manifest that says what they are of.

Rows are written in order, and the manifest says how many are there, so that a killed run goes on where it was.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.errors import BadValue, NoSuchFile

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class PartRecord:
    """What is known of one part.

    Attributes:
        rows: Number of rows N.
        inputs: Checksum of what they are the features of.
        done: How many are written.
    """

    rows: int
    inputs: str
    done: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a folder of features is of.

    Attributes:
        encoder: Name of the encoder.
        weights: Checksum of its weights.
        transform: What was done to samples before.
        width: Number of features D.
        data: Name of the data module that the samples came from.
        class_names: Names of the C classes.
        noisy_labels: Names of the sets of noisy labels in the folder, the one that the data module used first.
        parts: The parts by name; ``train`` and perhaps ``views``, ``test``, ``val``, ``trusted``, ``predict``.
        complete: Whether labels, too, are written.
    """

    encoder: str
    weights: str
    transform: str
    width: int
    data: str
    class_names: list[str] = field(default_factory=list)
    noisy_labels: list[str] = field(default_factory=list)
    parts: dict[str, PartRecord] = field(default_factory=dict)
    complete: bool = False

    @property
    def num_views(self) -> int:
        """Number of augmented views V of each training sample."""
        return self.parts["views"].rows // self.parts["train"].rows if "views" in self.parts else 0


class FeatureFolder:
    """A folder of features.

    Args:
        path: The folder.

    Attributes:
        manifest: What it holds.

    Raises:
        FileNotFoundError: If it holds no manifest.
        ValueError: If the manifest cannot be read.

    Example:
        >>> import tempfile
        >>> given = Manifest("e", "abc", "none", width=2, data="d")
        >>> folder = FeatureFolder.begin(Path(tempfile.mkdtemp()) / "features", given)
        >>> folder.add("test", rows=3, inputs="def")
        >>> folder.write("test", torch.ones(2, 2))
        >>> folder.manifest.parts["test"].done, folder.features("test").shape
        (2, torch.Size([3, 2]))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read(self.path / MANIFEST)
        self._open: dict[str, Any] = {}

    @classmethod
    def begin(cls, path: str | Path, asked: Manifest) -> "FeatureFolder":
        """Open a folder to write to, a new one or one that the same encoder has begun.

        Args:
            path: The folder.
            asked: What it shall hold; of an existing one, the encoder must be the same.

        Raises:
            ValueError: If it holds the features of another encoder, other weights or another transform.
        """
        path = Path(path)
        if not (path / MANIFEST).exists():
            _write(path / MANIFEST, asked)
            return cls(path)
        found = cls(path)
        for what in ("encoder", "weights", "transform", "width"):
            own, wanted = getattr(found.manifest, what), getattr(asked, what)
            if own != wanted:
                raise BadValue(
                    f"{path} holds features of another encoder, {found.manifest.encoder}: its {what} is"
                    f" {_at_difference(own, wanted)!r} and not {_at_difference(wanted, own)!r} as asked for; set output"
                    " (--output) to another folder, or remove this one."
                )
        return found

    def add(self, part: str, rows: int, inputs: str) -> None:
        """Make room for a part, or find the one that is there.

        Args:
            part: Its name.
            rows: Number of rows N.
            inputs: Checksum of what they are the features of.

        Raises:
            ValueError: If the part that is there is of other data.
        """
        asked = PartRecord(rows, inputs)
        known = self.manifest.parts.get(part)
        if known is not None and self.file(part).exists():
            if (known.rows, known.inputs) != (rows, inputs):
                raise BadValue(
                    f"{self.file(part)} holds features of other data, of {known.rows} samples with checksum"
                    f" {known.inputs[:12]} where these {rows} have {inputs[:12]}: set output (--output) to another"
                    " folder, or remove the file to have it written anew."
                )
            return
        self.file(part).unlink(missing_ok=True)
        with written_whole(self.file(part)) as temporary:
            shape = (rows, self.manifest.width)
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape).flush()
        self.update(parts=self.manifest.parts | {part: asked}, complete=False)

    def write(self, part: str, features: Tensor) -> None:
        """Write the next rows of a part.

        Args:
            part: Its name.
            features: Rows of shape ``(B, D)``.

        Raises:
            ValueError: If a value is beyond what float16 can hold.
        """
        rows = features.to(torch.float16)
        if not bool(rows.isfinite().all()):
            largest = float(features.abs().max())
            raise BadValue(
                f"{self.manifest.encoder} gives features as large as {largest:.3g}, beyond float16's 65,504: let the"
                " encoder scale them down."
            )
        record = self.manifest.parts[part]
        if part not in self._open:
            self._open[part] = np.load(self.file(part), mmap_mode="r+")
        self._open[part][record.done : record.done + len(rows)] = rows.cpu().numpy()
        parts = self.manifest.parts | {part: replace(record, done=record.done + len(rows))}
        self.manifest = replace(self.manifest, parts=parts)

    def save(self) -> None:
        """Put what was written on the disk, and then what the manifest says of it."""
        for values in self._open.values():
            values.flush()
        _write(self.path / MANIFEST, self.manifest)

    def update(self, **changes: Any) -> None:
        """Change the manifest, and save.

        Args:
            **changes: Attributes of the manifest and their values.
        """
        self.manifest = replace(self.manifest, **changes)
        self.save()

    def file(self, part: str) -> Path:
        """Where the features of a part lie.

        Args:
            part: Its name.
        """
        return self.path / f"{part}.npy"

    def require_complete(self) -> None:
        """Check that nothing is left to write.

        Raises:
            ValueError: If a run has not come to its end.
        """
        for part, record in self.manifest.parts.items():
            if record.done < record.rows:
                raise BadValue(
                    f"{self.path} is half-written, {record.done:,} of {record.rows:,} rows of {part}: run"
                    " noisylightning features again with the same options, which goes on from there."
                )
        if not self.manifest.complete:
            raise BadValue(f"{self.path} is half-written, without labels: run noisylightning features again.")

    def features(self, part: str) -> Tensor:
        """The features of a part, float16 of shape ``(N, D)``, read from the disk as they are used.

        Args:
            part: Its name.

        Raises:
            ValueError: If the file is truncated, or not of the manifest's shape.
        """
        shape = (self.manifest.parts[part].rows, self.manifest.width)
        found = self.array(part)
        if found.shape != shape or found.dtype != np.float16:
            raise BadValue(
                f"{self.file(part)} holds {found.dtype} of shape {found.shape}, not float16 of {shape} as"
                f" {MANIFEST} says: remove the folder, and run noisylightning features again."
            )
        return torch.from_numpy(found)

    def array(self, name: str) -> Any:
        """One of the folder's arrays.

        Args:
            name: Its file's name, without ``.npy``.

        Raises:
            ValueError: If the file is missing or truncated.
        """
        path = self.file(name)
        try:  # copied where it is written to, so that torch may think that it could
            return np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, TypeError, EOFError, OSError) as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise BadValue(
                f"{path} is damaged ({reason}): remove the folder, and run noisylightning features again."
            ) from error

    def has(self, name: str) -> bool:
        """Whether there is an array of that name.

        Args:
            name: Its file's name, without ``.npy``.
        """
        return self.file(name).exists()

    def put(self, name: str, values: Any) -> None:
        """Write a whole array; None removes the one that is there.

        Args:
            name: Its file's name, without ``.npy``.
            values: A tensor or an array.
        """
        if values is None:
            self.file(name).unlink(missing_ok=True)
            return
        with written_whole(self.file(name)) as temporary:
            np.save(temporary, np.asarray(values), allow_pickle=False)


def _read(path: Path) -> Manifest:
    if not path.is_file():
        raise NoSuchFile(
            f"There are no features in {path.parent}, since it has no {path.name}: make them by noisylightning features"
            " --output, or correct folder (--data.folder)."
        )
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        known = {name: content[name] for name in Manifest.__dataclass_fields__}
        known["parts"] = {name: PartRecord(**record) for name, record in known["parts"].items()}
        manifest = Manifest(**known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadValue(f"{path} is no manifest of features ({error!r}): make them anew.") from error
    if version != _FORMAT:
        raise BadValue(f"{path} is of format {version}, and this release reads {_FORMAT}: make the features anew.")
    return manifest


def _write(path: Path, manifest: Manifest) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT} | asdict(manifest), indent=2) + "\n", encoding="utf-8")


def _at_difference(text: Any, other: Any, few: int = 40) -> str:
    """A piece of a text from shortly before it differs from another on."""
    text, other = str(text), str(other)
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    begin = max(0, same - few // 2)
    end = begin + few
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"
