"""Images as encoders take them: whole batches at once, on the device that holds them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from noisylightning.errors import BadType, BadValue

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def rgb_images(images: Tensor, name: str = "The encoder") -> Tensor:
    """Bring images of any kind to uint8 of three channels.

    Args:
        images: Shape ``(B, 1, H, W)`` or ``(B, 3, H, W)``, uint8, or floats in [0, 1].
        name: Who takes them, for the error.

    Returns:
        uint8 of shape ``(B, 3, H, W)``; floats are rounded to 255 steps.

    Raises:
        TypeError: If they are no images.
        ValueError: If floats are outside [0, 1].

    Example:
        >>> rgb_images(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise BadType(
            f"{name} takes images, of shape (B, 1, H, W) or (B, 3, H, W), and was given {tuple(images.shape)}: choose"
            " an encoder that fits the data."
        )
    if images.is_floating_point():
        low, high = map(float, images.aminmax())
        if low < 0 or high > 1:
            raise BadValue(
                f"{name} takes images, as uint8 or as floats in [0, 1], and was given floats from {low:.3g} to"
                f" {high:.3g}: give them before they are normalised."
            )
        images = (images * 255).round()
    return images.to(torch.uint8).expand(-1, 3, -1, -1)


class ImageTransform:
    """Scale, cut out of the middle, normalise.

    An image larger than ``size`` is scaled so that its shorter side is ``resize``, and the middle of it is taken; a
    smaller one is scaled to ``size`` whole, since in small images there is no margin to cut.

    Args:
        size: Side of what the network takes, in pixels.
        resize: Side that larger images are scaled to before; by default ``size``, so that nothing square is cut.
        mean: Mean of each channel, of values in [0, 1]; by default ImageNet's.
        std: Standard deviation of each channel, likewise.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``; the first two without aliases.

    Raises:
        ValueError: If ``resize`` is smaller than ``size``, or either below 1.

    Example:
        >>> transform = ImageTransform(size=8)
        >>> transform(torch.zeros(2, 3, 5, 5, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear",
    ) -> None:
        self.size = size
        self.resize = size if resize is None else resize
        if not 1 <= self.size <= self.resize:
            raise BadValue(f"size must be at least 1 and resize no smaller, got {size} and {resize}: correct them.")
        self.mean, self.std = tuple(mean), tuple(std)
        self.interpolation = InterpolationMode(interpolation)

    @property
    def image_size(self) -> tuple[int, int]:
        """``size`` and ``resize``, for :class:`~noisylightning.encoders.Encoder`."""
        return self.size, self.resize

    def __call__(self, images: Tensor) -> Tensor:
        """Transform uint8 images ``(B, 3, H, W)`` to floats ``(B, 3, size, size)``, channels last in memory."""
        side = self.resize if min(images.shape[-2:]) > self.size else self.size
        if min(images.shape[-2:]) != side:
            images = functional.resize(images, [side], self.interpolation, antialias=True)
        images = functional.center_crop(images, [self.size, self.size])
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        scaled = images.float().mul_(1 / (255 * std)).sub_(mean / std)
        return scaled.contiguous(memory_format=torch.channels_last)  # the faster order for convolutions on the CPU

    def __repr__(self) -> str:
        return (
            f"ImageTransform(size={self.size}, resize={self.resize}, mean={self.mean}, std={self.std},"
            f" interpolation={self.interpolation.value!r})"
        )
