"""Image networks of timm and torchvision without their last layer, with the transforms that they were trained with."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
import torchvision.models
from torch import nn

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.hub import is_offline, reason_of
from noisylightning.encoders.images import ImageTransform
from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage
from noisylightning.models.pretrained import TorchvisionModel, classification_layer, read_state_dict


def timm_encoder(name: str, weights: str | Path | None = None, size: int | None = None) -> Encoder:
    """An image network of timm (the extra ``timm``), its pooled features.

    Args:
        name: Name in ``timm.list_models()``, such as ``vit_small_patch14_dinov2.lvd142m``, or a folder that timm's
            ``save_for_hf`` wrote.
        weights: The network's weights as a local file; None takes the published ones, which timm downloads once.
        size: Side of the images, in pixels; by default what the network was trained with.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        FileNotFoundError: If there is no such file, or weights would have to be downloaded and there is no network.
        ValueError: If the name is unknown, or the weights do not fit.

    Example:
        >>> import pytest, tempfile
        >>> timm = pytest.importorskip("timm")
        >>> file = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save(timm.create_model("test_resnet").state_dict(), file)
        >>> encoder = timm_encoder("test_resnet", file, size=32)
        >>> encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 96])
    """
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise NoSuchPackage(f"timm:{name} needs timm: pip install 'noisylightning[timm]'.") from error
    folder = Path(name).is_dir()
    if not folder and not timm.is_model(name.partition(".")[0]):
        raise BadValue(f"timm {timm.__version__} has no network {name!r}: choose one of timm.list_models().")
    if folder and weights is not None:
        raise BadValue(f"The folder {name} holds weights, so none can be given beside it: leave weights out.")
    known = f"local-dir:{name}" if folder else name
    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if not folder else None
    options: dict[str, Any] = {}
    if size is not None and (config is None or config.fixed_input_size):
        options["img_size"] = size  # position embeddings are scaled to it
    if weights is None and config is not None and is_offline():
        weights = _cached_of_timm(name, config)
    if weights is None:
        network = _built(lambda: timm.create_model(known, pretrained=True, **options), name, f"The weights of {name}")
    else:
        assert config is not None
        with _in_words_of_encoders():
            state = read_state_dict(weights)
        head = config.classifier if isinstance(config.classifier, str | None) else config.classifier[0]
        classes = len(state[f"{head}.weight"]) if f"{head}.weight" in state else 0
        source = {"state_dict": state, "num_classes": classes, "label_offset": 0}
        network = _built(  # with the file's own classes, timm loads every entry or fails
            lambda: timm.create_model(
                known, pretrained=True, num_classes=classes, pretrained_cfg_overlay=source, **options
            ),
            name,
            f"The weights {weights}",
        )
    network.reset_classifier(0)  # type: ignore[operator]
    found: Mapping[str, Any] = resolve_model_data_config(network)
    side = size or found["input_size"][-1]
    whole = found["crop_mode"] != "center"
    resize = side if whole else math.floor(side / found["crop_pct"])
    transform = ImageTransform(side, resize, found["mean"], found["std"], _interpolation(found["interpolation"]))
    return _of_images(network, transform, f"timm:{Path(name).name if folder else name}")


def torchvision_encoder(name: str, weights: str | Path | None = None, size: int | None = None) -> Encoder:
    """An image network of torchvision, what goes into its last layer.

    Args:
        name: Name in ``torchvision.models.list_models(torchvision.models)``, such as ``resnet50``.
        weights: The network's weights as a local file, or published ones by name (``IMAGENET1K_V2``); None takes
            torchvision's default ones. Published ones are downloaded once.
        size: Side of the images, in pixels; by default what the weights were trained with.

    Returns:
        The encoder.

    Raises:
        FileNotFoundError: If there is no such file, or weights would have to be downloaded and there is no network.
        ValueError: If the name is unknown, or the weights do not fit.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), file)
        >>> encoder = torchvision_encoder("shufflenet_v2_x0_5", file)
        >>> encoder.image_size
        (224, 256)
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise BadValue(f"torchvision has no classification network {name!r}: choose one of its list_models().")
    published = torchvision.models.get_model_weights(name)
    given = "DEFAULT" if weights is None else str(weights)
    if given in published.__members__:
        chosen = published[given]
        try:
            model = TorchvisionModel(name, num_classes=1000, weights=given)
        except (URLError, OSError) as error:
            raise NoSuchFile(
                f"The weights of torchvision:{name} are not on this machine and cannot be downloaded"
                f" ({reason_of(error)}): fetch {chosen.url} elsewhere, and give the file as weights (--weights)."
            ) from error
    else:
        with _in_words_of_encoders():
            model = TorchvisionModel(name, num_classes=1000, weights_file=given)
        of_this_name = [member for member in published if Path(member.url).name == Path(given).name]
        chosen = of_this_name[0] if of_this_name else next(iter(published))
    network = model.network
    network.set_submodule(classification_layer(network), nn.Identity())
    preset = chosen.transforms()
    side, resize = preset.crop_size[0], preset.resize_size[0]
    if size is not None:
        side, resize = size, max(size, size * resize // side)
    transform = ImageTransform(side, resize, preset.mean, preset.std, preset.interpolation.value)
    return _of_images(network, transform, f"torchvision:{name}")


@contextmanager
def _in_words_of_encoders() -> Iterator[None]:
    """Let an error about a backbone name the options that encoders have."""
    try:
        yield
    except (BadValue, NoSuchFile) as error:
        text = str(error).replace("weights_file (--model.backbone.weights_file)", "weights (--weights)")
        raise type(error)(text.replace("(--model.backbone.name)", "(--encoder)")) from error


def _of_images(network: nn.Module, transform: ImageTransform, name: str) -> Encoder:
    network = network.to(memory_format=torch.channels_last)
    return Encoder(network, "images", transform, name, transform.image_size)


def _interpolation(name: str) -> Literal["bilinear", "bicubic"]:
    return "bilinear" if name == "bilinear" else "bicubic"


def _built(build: Callable[[], nn.Module], name: str, source: str) -> nn.Module:
    """Build a network of timm, and say in one sentence if its weights cannot be had or do not fit."""
    try:
        return build()
    except (RuntimeError, KeyError) as error:
        raise BadValue(f"{source} do not fit timm's {name}: {reason_of(error)}.") from error
    except OSError as error:
        raise NoSuchFile(
            f"The weights of timm:{name} are not on this machine and cannot be downloaded ({reason_of(error)}): fetch"
            " them elsewhere, and give the file as weights (--weights)."
        ) from error


def _cached_of_timm(name: str, config: Any) -> str:
    """Where the weights lie that were downloaded earlier."""
    from huggingface_hub import try_to_load_from_cache

    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in names:
        found = try_to_load_from_cache(config.hf_hub_id, file) if config.hf_hub_id else None
        if isinstance(found, str):
            return found
    source = f"{names[0]} of {config.hf_hub_id}" if config.hf_hub_id else config.url
    raise NoSuchFile(
        f"The weights of timm:{name} are not on this machine and there is no network to download them: fetch {source}"
        " elsewhere, and give the file as weights (--weights)."
    )
