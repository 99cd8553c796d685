"""Text as rows of word indices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.errors import BadType, BadValue, NoSuchFile, NoSuchPackage, NotReady

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN = "<pad>", "<unk>"
_PADDING_TOKENS = (PADDING, "[PAD]")
# All ASCII punctuation but the apostrophe, and white space: where Keras' tokenizer splits.
_BETWEEN_WORDS = r"[!-&(-/:-@\[-`{-~\s]+"


class TextEncoder:
    """Texts to rows of word indices, all of one length, by a Hugging Face tokenizer (the extra ``text``).

    As in the IMDB experiments of Patrini et al. (2017), and the Keras functions that they used: words are lower-cased,
    split at white space and punctuation other than the apostrophe, and numbered by how often they occur in the
    training texts, equally frequent ones by the alphabet. Index 0 is padding and 1 every word beyond the
    ``vocab_size - 2`` most frequent ones (there is no mark for the start of a text). A short text is padded on the
    left, and of a long one the last ``length`` words are kept.

    A tokenizer and a vocabulary of torchtext take the place of these as they are:
    ``TextEncoder(get_tokenizer("basic_english"), vocab)``.

    Args:
        tokenizer: Function from a text to its words; None splits as described above.
        vocabulary: Words and their indices: an object with ``stoi`` (torchtext's ``Vocab``), a mapping from word to
            index, or the path of a ``tokenizer.json`` that :meth:`save` or Hugging Face wrote. Mappings need the
            entries ``<pad>`` and ``<unk>``. None learns it by :meth:`fit`.
        vocab_size: Largest number of words that :meth:`fit` keeps, padding and unknown included.
        length: Number of words L of a row.
        padding: Side on which short texts are padded.
        truncation: Side on which long texts are cut.

    Attributes:
        vocab_size: Size that an embedding needs, known before :meth:`fit`.
        padding_index: Index of padding, likewise.
        has_own_vocabulary: Whether the vocabulary was given and not learnt.

    Raises:
        ImportError: If the package ``tokenizers`` is not installed.
        FileNotFoundError: If there is no file ``vocabulary``.
        ValueError: If a size is too small, or the vocabulary lacks padding or does not go with the tokenizer.

    Example:
        >>> encoder = TextEncoder(length=4).fit(["The cat sat.", "The dog"])
        >>> encoder.words()
        ['<pad>', '<unk>', 'the', 'cat', 'dog', 'sat']
        >>> encoder(["The cat", "A bird sat on the dog"])
        tensor([[0, 0, 2, 3],
                [5, 1, 2, 4]], dtype=torch.int32)
    """

    def __init__(
        self,
        tokenizer: Callable[[str], list[str]] | None = None,
        vocabulary: Any = None,
        vocab_size: int = 5000,
        length: int = 400,
        padding: Literal["left", "right"] = "left",
        truncation: Literal["left", "right"] = "left",
    ) -> None:
        try:
            import tokenizers  # noqa: F401
        except ImportError as error:
            raise NoSuchPackage("TextEncoder needs tokenizers: pip install 'noisylightning[text]'.") from error
        if vocab_size < 3 or length < 1:
            raise BadValue(
                f"TextEncoder needs vocab_size >= 3 and length >= 1, got {vocab_size} and {length}: set vocab_size "
                "(--data.encoder.vocab_size) and length (--data.encoder.length)."
            )
        for name, side in {"padding": padding, "truncation": truncation}.items():
            if side not in ("left", "right"):
                raise BadValue(
                    f"TextEncoder's {name} must be 'left' or 'right', got {side!r}: set {name} (--data.encoder.{name})."
                )
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.length = length
        self.padding = padding
        self.truncation = truncation
        self.padding_index = 0  # as fit() numbers words; a vocabulary that is given says itself
        self.has_own_vocabulary = vocabulary is not None
        self._model: Tokenizer | None = None
        if vocabulary is not None:
            self._use(self._read(vocabulary))
            self.vocab_size = max(self._model.get_vocab().values()) + 1  # type: ignore[attr-defined]

    def _read(self, vocabulary: Any) -> "Tokenizer":
        from tokenizers import Tokenizer, models

        if isinstance(vocabulary, str | Path):
            path = Path(vocabulary)
            if not path.is_file():
                raise NoSuchFile(
                    f"There is no vocabulary file {path}; correct vocabulary (--data.encoder.vocabulary) or leave it "
                    "out."
                )
            try:
                model = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            except Exception as error:  # tokenizers raises bare exceptions
                raise BadValue(f"{path} is not a tokenizer.json ({error}); write it with TextEncoder.save.") from error
            if self.tokenizer is None and isinstance(model.model, models.WordLevel) and model.pre_tokenizer is None:
                raise BadValue(
                    f"{path} was saved for a tokenizer function; give that as tokenizer (--data.encoder.tokenizer), "
                    "too."
                )
        else:
            words = getattr(vocabulary, "stoi", vocabulary)
            if not isinstance(words, Mapping):
                raise BadType(
                    f"A vocabulary must have stoi, be a mapping or a path, got {type(vocabulary).__name__}; "
                    "give for example {word: index}."
                )
            missing = [token for token in (PADDING, UNKNOWN) if token not in words]
            if missing:
                raise BadValue(f"The vocabulary of {len(words)} words has no entry {' and no '.join(missing)}; add it.")
            model = Tokenizer(models.WordLevel(dict(words), unk_token=UNKNOWN))
            if self.tokenizer is None:
                _split_as_keras(model)
        if self.tokenizer is not None and model.pre_tokenizer is not None:
            raise BadValue(f"{vocabulary} brings its own tokenizer; leave out tokenizer={self.tokenizer!r}.")
        return model

    def _use(self, model: "Tokenizer") -> None:
        indices = {token: model.token_to_id(token) for token in _PADDING_TOKENS}
        found = [(token, index) for token, index in indices.items() if index is not None]
        if not found:
            raise BadValue(f"The vocabulary has none of the padding tokens {', '.join(indices)}; add one of them.")
        token, self.padding_index = found[0]
        model.encode_special_tokens = True  # "<pad>" in a text is what somebody wrote, not padding
        model.enable_padding(direction=self.padding, length=self.length, pad_token=token, pad_id=self.padding_index)
        model.enable_truncation(self.length, direction=self.truncation)
        self._model = model

    @property
    def is_fitted(self) -> bool:
        """Whether there is a vocabulary."""
        return self._model is not None

    def fit(self, texts: Sequence[str]) -> "TextEncoder":
        """Learn the vocabulary from training texts.

        Args:
            texts: The training texts, and no others.

        Returns:
            The encoder itself.
        """
        from tokenizers import Tokenizer, models, trainers

        model = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        trainer = trainers.WordLevelTrainer(
            vocab_size=self.vocab_size, special_tokens=[PADDING, UNKNOWN], show_progress=False
        )
        if self.tokenizer is None:
            _split_as_keras(model)
            model.train_from_iterator(texts, trainer)
        else:
            # every word by itself, which a model without a pre-tokenizer takes as it is
            model.train_from_iterator(map(self.tokenizer, texts), trainer)
        self._use(model)
        return self

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: N texts.

        Returns:
            Word indices of shape (N, L), int32.

        Raises:
            ValueError: If a text has no word.
        """
        model = self._fitted()
        given: Iterable[Any] = texts if self.tokenizer is None else map(self.tokenizer, texts)
        rows = model.encode_batch_fast(list(given), is_pretokenized=self.tokenizer is not None)
        indices = np.array([row.ids for row in rows], dtype=np.int32).reshape(len(rows), self.length)
        empty = np.flatnonzero((indices == self.padding_index).all(axis=1))
        if len(empty):
            raise BadValue(f"Text {empty[0]} of {len(rows)} has no word: {texts[empty[0]][:40]!r}; remove it.")
        return torch.from_numpy(indices)

    def words(self) -> list[str]:
        """The vocabulary in the order of its indices."""
        vocabulary = self._fitted().get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def to_json(self) -> str:
        """The encoder as Hugging Face's ``tokenizer.json``."""
        return self._fitted().to_str()

    def load_json(self, content: str) -> None:
        """Take the vocabulary that :meth:`to_json` gave.

        Args:
            content: The content of a ``tokenizer.json``.

        Raises:
            ValueError: If it is none.
        """
        from tokenizers import Tokenizer

        try:
            model = Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises bare exceptions
            raise BadValue(f"This is not the content of a tokenizer.json ({error}).") from error
        self._use(model)

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``, for ``TextEncoder(vocabulary=path)`` or ``tokenizers.Tokenizer.from_file(path)``.

        Args:
            path: Where to; an existing file is replaced in one step.
        """
        with written_whole(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    def _fitted(self) -> "Tokenizer":
        if self._model is None:
            raise NotReady("TextEncoder has no vocabulary yet; call fit on the training texts first.")
        return self._model


def _split_as_keras(model: "Tokenizer") -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    model.normalizer = normalizers.Sequence([normalizers.Replace(Regex(_BETWEEN_WORDS), " "), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
