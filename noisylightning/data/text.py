"""The base of the data modules that read text, and the one for your own tables of texts."""

import hashlib
import json
import zipfile
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.data.base import NoisyDataModule
from noisylightning.data.rows import checked_text, label_number, names_of, read_records
from noisylightning.data.text_encoder import TextEncoder
from noisylightning.errors import BadValue

Part: TypeAlias = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")


class NoisyTextDataModule(NoisyDataModule):
    """Base of the data modules that read text: encoded once, held in memory as rows of word indices.

    A subclass sets ``num_classes`` and ``class_names`` and overrides :meth:`read_texts`. The vocabulary is learnt from
    the texts of the training part alone; it is saved with every checkpoint, and a checkpoint of another vocabulary is
    refused. Inputs are word indices of shape (L,), int64.

    Args:
        encoder: Makes indices of texts; an encoder that has a vocabulary already is used as it is.
        cache_dir: Folder for the encoded texts, so that later runs need not encode them; None keeps none. A file there
            is used only for the same texts and the same encoder, by checksum.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        ValueError: If there is a ``cache_dir`` and the encoder has a tokenizer function, which no checksum covers.
    """

    def __init__(self, encoder: TextEncoder | None = None, cache_dir: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = TextEncoder() if encoder is None else encoder
        if cache_dir is not None and self.encoder.tokenizer is not None:
            raise BadValue(
                f"cache_dir={str(cache_dir)!r} cannot tell tokenizer functions apart; leave out cache_dir or tokenizer."
            )
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.transform = Tensor.long  # held as int32, half the memory
        self._parts: dict[Part, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read_texts(self, part: Part) -> tuple[list[str], Tensor]:
        """Read the texts of a part and their labels as they come.

        Args:
            part: Training and validation, or test.

        Returns:
            N texts, and their labels, integers of shape (N,).
        """

    @property
    def vocab_size(self) -> int:
        """Number of words that an embedding must have, known before ``setup``."""
        return self.encoder.vocab_size

    def prepare_data(self) -> None:
        """Fill the cache, where there is to be one, on one process."""
        if self.cache_dir is not None:
            self._encoded()

    def load_train(self) -> tuple[Tensor, Tensor]:
        """Encoded texts to train and validate."""
        return self._encoded()["train"]

    def load_test(self) -> tuple[Tensor, Tensor]:
        """Encoded test texts; their words are the training texts'."""
        return self._encoded()["test"]

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary, for the checkpoint."""
        return {"vocabulary": self.encoder.to_json()} if self.encoder.is_fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was made with this vocabulary.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it was not.
        """
        if self.encoder.is_fitted and state_dict.get("vocabulary", "") not in ("", self.encoder.to_json()):
            raise BadValue(
                f"The checkpoint was made with another vocabulary than {type(self).__name__}'s of "
                f"{self.encoder.vocab_size} words; give the same training texts and encoder."
            )

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
            perhaps compressed (``.gz``, ``.xz``).
        test_file: Table with clean labels; None for no test set.
        class_names: Names of the classes in the order of their numbers; by default those in ``train_file``, sorted. The
            label column holds names, or numbers from 0.
        text_column: Name of the column of texts.
        label_column: Name of the column of labels.
        kwargs: What every text data module takes, see :class:`NoisyTextDataModule`.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If it is no such table, a column is missing, a text is empty, or a label is blank or not among the
            classes.
    """

    def __init__(
        self,
        train_file: str | Path,
        test_file: str | Path | None = None,
        class_names: list[str] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tables: dict[Part, Path] = {"train": Path(train_file)}
        self.has_test = test_file is not None
        if test_file is not None:
            self.tables["test"] = Path(test_file)
        self.text_column = text_column
        self.label_column = label_column
        if class_names is None:
            named = [str(row[label_column]) for _, row in read_records(Path(train_file), [label_column])]
            class_names = names_of(named, str(train_file))
        self.class_names = class_names
        self.num_classes = len(class_names)

    def read_texts(self, part: Part) -> tuple[list[str], Tensor]:
        """The texts and labels of one table, see :meth:`NoisyTextDataModule.read_texts`."""
        path, texts, labels = self.tables[part], [], []
        for line, row in read_records(path, [self.text_column, self.label_column]):
            where = f"{path}, line {line},"
            labels.append(label_number(row[self.label_column], self.class_names, where))
            texts.append(checked_text(row[self.text_column], where))
        if not texts:
            raise BadValue(f"{path} holds no text; give at least one of each class.")
        return texts, torch.tensor(labels)
