"""Encoders by name or file."""

import difflib
import importlib
from pathlib import Path
from typing import Any, Literal

from torch import nn

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.exported import exported_encoder, onnx_encoder
from noisylightning.encoders.huggingface import sentence_transformers_encoder, transformers_encoder
from noisylightning.encoders.packaged import efficientnet_lite0, minilm
from noisylightning.encoders.vision import timm_encoder, torchvision_encoder
from noisylightning.errors import BadType, BadValue

WAYS = {
    "efficientnet_lite0": "a small network for images, with ImageNet's weights (extra bench)",
    "minilm": "a small network for English texts (extra bench)",
    "timm:NAME": "an image network of timm, by name or from a folder (extra timm)",
    "torchvision:NAME": "an image network of torchvision",
    "transformers:NAME": "a model of Hugging Face for texts or images, by name or from a folder (extra huggingface)",
    "sentence-transformers:NAME": "a model of sentences, by name, from a folder or its .zip (extra of that name)",
    "FILE.onnx": "a network in an ONNX file (extra onnx)",
    "FILE.pt2": "a network that torch.export.save wrote",
    "package.module.name": "an Encoder or nn.Module of your own, or a function that makes one",
}
"""What :func:`load_encoder` takes, and what each is."""


def load_encoder(
    name: str,
    weights: str | Path | None = None,
    size: int | None = None,
    takes: Literal["images", "texts"] | None = None,
) -> Encoder:
    """Make an encoder, with the transform that its inputs need.

    Args:
        name: ``efficientnet_lite0``, ``minilm``, ``timm:NAME``, ``torchvision:NAME``, ``transformers:NAME``,
            ``sentence-transformers:NAME``, the path of an ``.onnx`` or ``.pt2`` file, or the import path of an encoder,
            of a network, or of a function that makes one.
        weights: For timm and torchvision, a local file of the network's weights; None takes the published ones.
        size: For images, their side in pixels; None takes what the network was trained with.
        takes: What it shall take, for a model that can take images and texts.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If a package is missing.
        FileNotFoundError: If a file is missing, or weights would have to be downloaded and there is no network.
        ValueError: If there is no such encoder, it has no such option, or its weights do not fit.
        TypeError: If what an import path names is no encoder.

    Example:
        >>> load_encoder("torch.nn.Flatten").takes
        'inputs'
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in ("timm", "torchvision"):
        return (timm_encoder if kind == "timm" else torchvision_encoder)(rest, weights, size)
    if weights is not None:
        raise BadValue(f"{name} brings its weights: leave weights={str(weights)!r} (--weights) out.")
    if name == "efficientnet_lite0":
        return efficientnet_lite0(size)
    if name.endswith((".onnx", ".pt2")):
        return (onnx_encoder if name.endswith(".onnx") else exported_encoder)(name, size)
    if size is not None:
        raise BadValue(f"{name} knows the size of what it takes: leave size={size} (--size) out.")
    if name == "minilm":
        return minilm()
    if colon and kind == "transformers":
        return transformers_encoder(rest, takes)
    if colon and kind == "sentence-transformers":
        return sentence_transformers_encoder(rest)
    if "." in name and not colon:
        return _imported(name)
    near = difflib.get_close_matches(kind, [way.partition(":")[0] for way in WAYS], n=1)
    hint = f"did you mean {next(way for way in WAYS if way.startswith(near[0]))}" if near else f"give {', '.join(WAYS)}"
    raise BadValue(
        f"There is no encoder {name} (--encoder): {hint}?" if near else f"There is no encoder {name}: {hint}."
    )


def _imported(path: str) -> Encoder:
    module, _, attribute = path.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BadValue(f"There is no encoder {path} to import ({error}): correct encoder (--encoder).") from error
    made = found() if callable(found) and not isinstance(found, nn.Module) else found
    if isinstance(made, Encoder):
        return made
    if isinstance(made, nn.Module):
        return Encoder(made, name=path)
    raise BadType(f"{path} is a {type(made).__name__}: an encoder is an Encoder or an nn.Module, or makes one.")
