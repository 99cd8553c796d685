"""The base of the data modules that read text, and the one for your own tables of texts."""

import hashlib
import json
import zipfile
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.data.base import NoisyDataModule
from noisylightning.data.class_names import class_names_in, class_number
from noisylightning.data.rows import read_rows
from noisylightning.data.text_encoder import TextEncoder
from noisylightning.errors import BadValue

Part: TypeAlias = Literal["train", "test", "predict"]
PARTS: tuple[Part, ...] = ("train", "test")


def checked_text(text: Any, where: str) -> str:
    """Check that something read is a text and not empty.

    Args:
        text: What was read.
        where: Where it stands, for the error.

    Returns:
        The text.

    Raises:
        ValueError: If it is no text or blank.
    """
    if not isinstance(text, str):
        raise BadValue(f"{where} has {text!r} for a text; give a string.")
    if not text.strip():
        raise BadValue(f"{where} has an empty text; remove it or restore its words.")
    return text


def shorten(text: str, most: int = 300) -> str:
    r"""A text on one line, cut where it is long.

    Args:
        text: The text.
        most: Characters that are kept.

    Example:
        >>> shorten("a fine\n film", most=7)
        'a fine ...'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


class NoisyTextDataModule(NoisyDataModule):
    """Base of the data modules that read text: encoded once, held in memory as rows of word indices.

    A subclass sets ``num_classes`` and ``class_names`` and overrides :meth:`read_texts`. The vocabulary is learnt from
    the texts of the training part alone; it is saved with every checkpoint, from which testing and predicting take it,
    and a fit is not resumed with another. Inputs are word indices of shape (L,), int64.

    Args:
        encoder: Makes indices of texts; an encoder that has a vocabulary already is used as it is.
        cache_dir: Folder for the encoded texts, so that later runs need not encode them; None keeps none. A file there
            is used only for the same texts and the same encoder, by checksum.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Attributes:
        has_train: Whether there are training texts; without them the vocabulary is a checkpoint's or the encoder's own.

    Raises:
        ValueError: If there is a ``cache_dir`` and the encoder has a tokenizer function, which no checksum covers.
    """

    has_train: bool = True

    def __init__(self, encoder: TextEncoder | None = None, cache_dir: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = TextEncoder() if encoder is None else encoder
        if cache_dir is not None and self.encoder.tokenizer is not None:
            raise BadValue(
                f"cache_dir={str(cache_dir)!r} cannot tell tokenizer functions apart; leave cache_dir "
                "(--data.cache_dir) or the encoder's tokenizer out."
            )
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.transform = Tensor.long  # held as int32, half the memory
        self._parts: dict[Part, tuple[Tensor, Tensor]] = {}
        self._from_checkpoint = False  # the vocabulary, so that the training texts are not needed

    @abstractmethod
    def read_texts(self, part: Part) -> tuple[list[str], Tensor]:
        """Read the texts of a part and their labels as they come.

        Args:
            part: Training and validation, test, or texts to predict.

        Returns:
            N texts, and their labels, integers of shape (N,), -1 where not known.
        """

    def read_part(self, part: str) -> tuple[list[str], Tensor] | None:
        """The texts of a part, see :meth:`NoisyDataModule.read_part`."""
        if part == "train" or (part == "test" and self.has_test):
            return self.read_texts(part)  # type: ignore[arg-type]
        return None

    def sample_names(self) -> list[str]:
        """The training texts, each on one line and cut after 300 characters."""
        return [shorten(text) for text in self.read_texts("train")[0]]

    @property
    def vocab_size(self) -> int:
        """Number of words that an embedding must have, known before ``setup``."""
        return self.encoder.vocab_size

    @property
    def padding_index(self) -> int:
        """Index of padding, known before ``setup``."""
        return self.encoder.padding_index

    def prepare_data(self) -> None:
        """Fill the cache, where there is to be one, on one process."""
        if self.cache_dir is not None and self.has_train:
            self._encoded()

    def load_train(self) -> tuple[Tensor, Tensor]:
        """Encoded texts to train and validate."""
        return self._encoded()["train"]

    def load_test(self) -> tuple[Tensor, Tensor]:
        """Encoded test texts; their words are the training texts'."""
        return self._encode("test") if self._from_checkpoint or not self.has_train else self._encoded()["test"]

    @property
    def is_fitted(self) -> bool:
        """Whether there is a vocabulary."""
        return self.encoder.is_fitted

    def state_dict(self) -> dict[str, Any]:
        """Classes and vocabulary, for the checkpoint."""
        return {**super().state_dict(), "vocabulary": self.encoder.to_json()} if self.is_fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the vocabulary over from a checkpoint.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If the classes are others, or training texts have been read that gave another vocabulary, or the
                encoder was given one.
        """
        super().load_state_dict(state_dict)
        vocabulary = state_dict.get("vocabulary")
        if vocabulary is None or (self.is_fitted and vocabulary == self.encoder.to_json()):
            return
        if self._train is not None or self.encoder.has_own_vocabulary:
            raise BadValue(
                f"The checkpoint was made with another vocabulary than {type(self).__name__}'s of "
                f"{self.encoder.vocab_size} words; give the same training texts and encoder."
            )
        self.encoder.load_json(vocabulary)
        self._parts, self._from_checkpoint = {}, True
        self._read_anew()

    def _encode(self, part: Part) -> tuple[Tensor, Tensor]:
        """Encode one part by the vocabulary that there is, or else by the training texts'."""
        if not self.is_fitted:
            self._encoded()
        texts, labels = self.read_texts(part)
        return self.encoder(texts), labels

    def _encoded(self) -> dict[Part, tuple[Tensor, Tensor]]:
        if self._parts:
            return self._parts
        parts = PARTS if self.has_test else PARTS[:1]
        read = {part: self.read_texts(part) for part in parts}
        texts = {part: read[part][0] for part in parts}
        path = None if self.cache_dir is None else self.cache_dir / f"{type(self).__name__}-{self._checksum(texts)}.npz"
        if path is not None and path.exists():
            words = self._read_cache(path, parts)
        else:
            if not self.encoder.is_fitted:
                self.encoder.fit(texts["train"])
            words = {part: self.encoder(texts[part]) for part in parts}
            if path is not None:
                self._write_cache(path, words)
        self._parts = {part: (words[part], read[part][1]) for part in parts}
        return self._parts

    def _checksum(self, texts: dict[Part, list[str]]) -> str:
        """SHA-256 of all that the encoded texts depend on."""
        encoder = self.encoder
        vocabulary = encoder.to_json() if encoder.is_fitted else None
        settings = (encoder.vocab_size, encoder.length, encoder.padding, encoder.truncation, vocabulary)
        return hashlib.sha256(json.dumps([settings, texts]).encode()).hexdigest()

    def _write_cache(self, path: Path, words: dict[Part, Tensor]) -> None:
        content: dict[str, Any] = {part: rows.numpy() for part, rows in words.items()}
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, vocabulary=np.str_(self.encoder.to_json()), **content)

    def _read_cache(self, path: Path, parts: tuple[Part, ...]) -> dict[Part, Tensor]:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                words = {part: torch.from_numpy(content[part]) for part in parts}
                self.encoder.load_json(str(content["vocabulary"]))
        except (KeyError, ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise BadValue(f"The cache {path} is damaged ({error}); remove it.") from error
        return words


class TextTableDataModule(NoisyTextDataModule):
    """Your own texts: one table to train and validate, another to test, each with a text and a label column.

    Args:
        train_file: Table for training and validation: ``.csv``, ``.tsv`` or ``.jsonl`` (an object a line), UTF-8,
            perhaps compressed (``.gz``, ``.xz``), or ``.parquet`` (with the extra ``parquet``); not needed to test or
            to predict a checkpoint, which knows classes and vocabulary.
        test_file: Table with clean labels; None for no test set.
        predict_file: Table of texts to predict, whose labels may be blank or the column left out; None predicts
            ``test_file``.
        class_names: Names of the classes in the order of their numbers; by default those in ``train_file``, sorted. The
            label column holds names, or numbers from 0.
        text_column: Name of the column of texts.
        label_column: Name of the column of labels.
        kwargs: What every text data module takes, see :class:`NoisyTextDataModule`.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If it is no such table, a column is missing, a text is empty, or a label is blank or not among the
            classes; if there is neither a ``train_file`` nor ``class_names``.
    """

    test_argument: ClassVar[str] = "test_file"

    def __init__(
        self,
        train_file: str | Path | None = None,
        test_file: str | Path | None = None,
        predict_file: str | Path | None = None,
        class_names: list[str] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        files: dict[Part, str | Path | None] = {"train": train_file, "test": test_file, "predict": predict_file}
        self.tables: dict[Part, Path] = {part: Path(file) for part, file in files.items() if file is not None}
        self.has_train = train_file is not None
        self.has_test = test_file is not None
        self.text_column = text_column
        self.label_column = label_column
        if class_names is None:  # the classes must be known before the model is built
            path = self._table("train")
            named = [row[label_column] for _, row in read_rows(path, {label_column: "label_column"}, "train_file")]
            class_names = class_names_in(named, str(path))
        self.class_names = class_names
        self.num_classes = len(class_names)

    def read_part(self, part: str) -> tuple[list[str], Tensor] | None:
        """The texts of a part, see :meth:`NoisyDataModule.read_part`."""
        return self.read_texts("predict") if part == "predict" and part in self.tables else super().read_part(part)

    def load_predict(self) -> tuple[Tensor, Tensor] | None:
        """Encoded texts to predict, and their labels, -1 where there is none."""
        return self._encode("predict") if "predict" in self.tables else None

    def read_texts(self, part: Part) -> tuple[list[str], Tensor]:
        """The texts and labels of one table, see :meth:`NoisyTextDataModule.read_texts`."""
        path, texts, labels = self._table(part), [], []
        columns: dict[str, str | None] = {self.text_column: "text_column"}
        if part != "predict":
            columns[self.label_column] = "label_column"
        for line, row in read_rows(path, columns, f"{part}_file"):
            where = f"{path}, line {line},"
            label = row.get(self.label_column)
            unknown = part == "predict" and str("" if label is None else label).strip() == ""
            labels.append(-1 if unknown else class_number(label, self.class_names, where))
            texts.append(checked_text(row[self.text_column], where))
        if not texts:
            raise BadValue(f"{path} holds no text; give at least one of each class.")
        return texts, torch.tensor(labels)

    def _table(self, part: Part) -> Path:
        if part not in self.tables:
            raise BadValue(
                f"{type(self).__name__} has no table of texts to {part}: set {part}_file (--data.{part}_file), or test "
                "a checkpoint (--ckpt_path), which knows class_names and the vocabulary."
            )
        return self.tables[part]
