"""IMDB reviews: the text data of the loss-correction paper."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisylightning.data.class_names import class_number
from noisylightning.data.locations import default_data_dir
from noisylightning.data.rows import read_rows
from noisylightning.data.text import NoisyTextDataModule, Part, checked_text
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.transition import binary_asymmetric

_SOURCES = ("aclImdb", "imdb.jsonl.xz", "imdb.jsonl.gz", "imdb.jsonl")


class IMDBDataModule(NoisyTextDataModule):
    """IMDB (Maas et al. 2011): 25,000 film reviews to train and validate and 25,000 to test, half of each positive.

    Inputs are word indices of shape (L,), see :class:`TextEncoder`; class 1 is positive. ``AsymmetricNoise(rate)``
    is the paper's: positive becomes negative at the rate, negative becomes positive at 0.05.

    Args:
        data_dir: Folder that holds ``aclImdb`` as its authors publish it, or ``imdb.jsonl``, perhaps compressed
            (``.gz``, ``.xz``), with ``split``, ``label`` and ``text`` a line; by default what the environment variable
            ``NOISYLIGHTNING_DATA`` names, else ``data``.
        kwargs: What every text data module takes, see :class:`NoisyTextDataModule`.

    Raises:
        FileNotFoundError: At ``setup``, if there is neither.
        ValueError: At ``setup``, if a class has not 12,500 reviews, or a review is empty or not UTF-8.
    """

    reviews_per_class: ClassVar[int] = 12_500

    def __init__(self, data_dir: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = default_data_dir() if data_dir is None else Path(data_dir)
        self.num_classes = 2
        self.class_names = ["negative", "positive"]

    def asymmetric_transition(self, rate: float) -> Tensor:
        """The paper's T for text, see :func:`~noisylightning.transition.binary_asymmetric`.

        Args:
            rate: Probability, in [0, 1], of positive becoming negative.

        Returns:
            T of shape (2, 2).
        """
        return binary_asymmetric(rate)

    def read_texts(self, part: Part) -> tuple[list[str], Tensor]:
        """The reviews of one part, see :meth:`NoisyTextDataModule.read_texts`."""
        sources = [path for name in _SOURCES if (path := self.data_dir / name).exists()]
        if not sources:
            raise NoSuchFile(
                f"There is neither aclImdb nor imdb.jsonl[.gz|.xz] in {self.data_dir}; set data_dir or "
                "NOISYLIGHTNING_DATA to the folder that holds one of them (--data.data_dir)."
            )
        source = sources[0]
        texts, labels = self._from_folder(source / part) if source.is_dir() else self._from_table(source, part)
        for c, name in enumerate(self.class_names):
            if labels.count(c) != self.reviews_per_class:
                raise BadValue(
                    f"{source} has {labels.count(c):,} {name} {part} reviews instead of {self.reviews_per_class:,}; "
                    "fetch it again."
                )
        return texts, torch.tensor(labels)

    def _from_folder(self, folder: Path) -> tuple[list[str], list[int]]:
        texts: list[str] = []
        labels: list[int] = []
        for c, name in enumerate(("neg", "pos")):
            if not (folder / name).is_dir():
                raise NoSuchFile(f"There is no folder {folder / name}; unpack aclImdb_v1.tar.gz again.")
            paths = sorted((folder / name).glob("*.txt"), key=_review_number)
            texts += map(_read_text, paths)
            labels += [c] * len(paths)
        return texts, labels

    def _from_table(self, path: Path, part: Part) -> tuple[list[str], list[int]]:
        texts, labels = [], []
        for line, row in read_rows(path, dict.fromkeys(("split", "label", "text"))):
            if row["split"] == part:
                where = f"{path}, line {line},"
                texts.append(checked_text(row["text"], where))
                labels.append(class_number(row["label"], self.class_names, where))
        return texts, labels


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not UTF-8 (byte {error.start}); convert it.") from error
    return checked_text(text, str(path))


def _review_number(path: Path) -> int:
    number, _, rating = path.stem.partition("_")
    if not (number.isdecimal() and rating.isdecimal()):
        raise BadValue(f"{path} is not called <number>_<rating>.txt, so it is none of the reviews; remove it.")
    return int(number)
