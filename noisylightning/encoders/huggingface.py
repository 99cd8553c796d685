"""Models of Hugging Face: transformers, for images and texts, and sentence-transformers."""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.hub import is_offline, reason_of
from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage

_Model = TypeVar("_Model")
_LONGEST = 512  # tokens, where neither tokenizer nor model names a limit
_UNLIMITED = 10**6  # a tokenizer without a limit says 1e30


class ProcessorTransform:
    """What a model's own image processor does.

    Args:
        processor: An image processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, images: Tensor) -> Tensor:
        """Transform uint8 images ``(B, 3, H, W)`` to what the model takes."""
        found: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return found

    def __repr__(self) -> str:
        return f"{type(self.processor).__name__}({json.dumps(self.processor.to_dict(), sort_keys=True, default=str)})"


class Tokenize:
    """Texts to a batch of token indices, padded to the longest.

    Args:
        tokenizer: A tokenizer of transformers.
        longest: Tokens beyond which a text is cut.
    """

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.tokenizer = tokenizer
        self.longest = longest

    def __call__(self, texts: Sequence[str]) -> Any:
        """Tokenize B texts to tensors by name."""
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt")

    def __repr__(self) -> str:
        vocabulary = hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
        return f"{type(self.tokenizer).__name__}(vocabulary={vocabulary[:16]}, longest={self.longest})"


class _Pooled(nn.Module):
    """One vector a sample of what a model says of its pixels or tokens."""

    def __init__(self, model: nn.Module, pooler: bool) -> None:
        super().__init__()
        self.model = model
        self.pooler = pooler  # whether its own pooling has been trained

    def forward(self, given: Any) -> Tensor:
        if isinstance(given, Tensor):
            return self._of_images(given)
        own = getattr(self.model, "get_text_features", None)
        if own is not None:
            return _tensor_of(own(**given))
        tokens: Tensor = self.model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    def _of_images(self, images: Tensor) -> Tensor:
        own = getattr(self.model, "get_image_features", None)
        if own is not None:
            return _tensor_of(own(pixel_values=images))
        found = self.model(pixel_values=images)
        pooled = getattr(found, "pooler_output", None)
        if self.pooler and pooled is not None:
            return pooled.flatten(1) if pooled.ndim == 4 else pooled  # (B, D, 1, 1) of a convolutional network
        last: Tensor = found.last_hidden_state
        if last.ndim == 4:
            return last.mean(dim=(2, 3))
        has_class_token = any(name.endswith("cls_token") for name, _ in self.model.named_parameters())
        return last[:, 0] if has_class_token else last.mean(dim=1)


def _tensor_of(found: Any) -> Tensor:
    """The features of a model of images and texts; some releases of transformers wrap them."""
    return found if isinstance(found, Tensor) else found.pooler_output


def transformers_encoder(name: str, takes: Literal["images", "texts"] | None = None) -> Encoder:
    """A model of Hugging Face transformers (the extra ``huggingface``), with its own processor or tokenizer.

    Of images the features are those that the model pools itself if its weights say how, else its class token, else the
    mean over the image; of texts the mean over the tokens; of a model of both, the vectors that it compares.

    Args:
        name: A folder that ``save_pretrained`` wrote, model and processor or tokenizer, or a name on the hub, which is
            downloaded once.
        takes: What it shall take, where it could take either; by default images.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        FileNotFoundError: If there is no such folder, or it would have to be downloaded and there is no network.
        ValueError: If the weights do not fit.
    """
    try:
        import transformers
    except ImportError as error:
        raise NoSuchPackage(
            f"transformers:{name} needs transformers: pip install 'noisylightning[huggingface]'."
        ) from error
    where: dict[str, Any] = {"local_files_only": not Path(name).is_dir() and is_offline()}
    full = f"transformers:{name}"

    def load() -> tuple[Any, dict[str, Any], Any]:
        model, report = transformers.AutoModel.from_pretrained(name, output_loading_info=True, **where)
        return model, report, _processor_of(transformers, name, takes, where)

    model, report, processor = _loaded(load, full, "config.json, model.safetensors and the files of its processor")
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise BadValue(
            f"The weights of {full} do not fit its configuration: {len(missing)} entries are missing, {missing[0]} the"
            " first of them."
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    called = f"transformers:{_short(name)}"
    network = _Pooled(model.float(), pooler=not report["missing_keys"])
    if isinstance(processor, Tokenize):
        if processor.longest >= _UNLIMITED:
            processor.longest = min(getattr(model.config, "max_position_embeddings", None) or _LONGEST, _LONGEST)
        return Encoder(network, "texts", processor, called)
    size = processor.processor.size
    resize = size.get("shortest_edge") or size.get("height")
    crop = getattr(processor.processor, "crop_size", None) or {}
    side = crop.get("height") if getattr(processor.processor, "do_center_crop", False) else resize
    return Encoder(network, "images", processor, called, (side, resize) if side and resize else None)


def _processor_of(transformers: Any, name: str, takes: str | None, where: dict[str, Any]) -> Any:
    """The tokenizer, or the image processor, of which a model of texts has none."""
    if takes != "texts":
        try:
            return ProcessorTransform(transformers.AutoImageProcessor.from_pretrained(name, **where))
        except (OSError, ValueError, KeyError):
            if takes == "images":
                raise
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
    return Tokenize(tokenizer, tokenizer.model_max_length)


class _Sentences(nn.Module):
    """A SentenceTransformer as a network from texts to vectors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return found


def sentence_transformers_encoder(name: str, called: str | None = None) -> Encoder:
    """A model of sentence-transformers (the extra ``sentence-transformers``), as its own ``encode`` uses it.

    Args:
        name: A folder that ``save`` wrote, such a folder in a ``.zip``, or a name on the hub, which is downloaded once.
        called: What it is called; by default ``sentence-transformers:NAME``.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If sentence-transformers is not installed.
        FileNotFoundError: If there is no such folder, or it would have to be downloaded and there is no network.
        ValueError: If it holds no such model.
    """
    full = f"sentence-transformers:{name}"
    called = f"sentence-transformers:{_short(name)}" if called is None else called
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise NoSuchPackage(
            f"{called} needs sentence-transformers: pip install 'noisylightning[sentence-transformers]'."
        ) from error
    path = Path(name)
    with tempfile.TemporaryDirectory() as unpacked:
        if path.suffix == ".zip" and path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(unpacked)
            except zipfile.BadZipFile as error:
                raise BadValue(f"{path} is truncated or no .zip ({reason_of(error)}): fetch it again.") from error
            name = unpacked
        offline = not Path(name).is_dir() and is_offline()
        model = _loaded(
            lambda: SentenceTransformer(name, device="cpu", local_files_only=offline),
            full,
            "modules.json and all that lies beside it",
        ).float()
    details = f"longest={model.max_seq_length}, prompt={model.default_prompt_name}, {Tokenize(model.tokenizer, 0)!r}"
    return Encoder(_Sentences(model), "texts", name=called, details=details)


def _short(name: str) -> str:
    """A folder without the path to it, a name on the hub as it is: where a model lies does not change it."""
    return Path(name).name if Path(name).exists() else name


def _loaded(load: Callable[[], _Model], name: str, files: str) -> _Model:
    """Load a model, and say in one sentence if it cannot be had or is broken."""
    from transformers.utils import logging

    _, _, what = name.partition(":")
    shows_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one for each model, which takes a second
    try:
        return load()
    except OSError as error:
        if Path(what).exists():
            raise BadValue(f"The folder {what} holds no whole model ({reason_of(error)}): save it again.") from error
        raise NoSuchFile(
            f"{name} is not on this machine and cannot be downloaded ({reason_of(error)}): fetch its folder elsewhere"
            f" ({files}), and give {name.partition(':')[0]}:FOLDER."
        ) from error
    except (ValueError, RuntimeError, KeyError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        raise BadValue(f"{name} cannot be loaded: {reason_of(error)}.") from error
    finally:
        if shows_bar:
            logging.enable_progress_bar()
