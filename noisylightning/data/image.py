"""From stored uint8 images to what a network takes, whole batches at once and on the device that holds them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from noisylightning.errors import BadValue


class Normalize:
    """From uint8 images to ``(image / 255 - mean) / std`` by channel.

    Args:
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel.

    Example:
        >>> Normalize(mean=[0.5], std=[0.25])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-2.,  2.]]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        std_ = torch.tensor(std).view(-1, 1, 1)
        self.scale = 1 / (255 * std_)  # image * scale + shift is one pass less than the formula
        self.shift = -torch.tensor(mean).view(-1, 1, 1) / std_

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images of shape (B, channels, H, W)."""
        return images.to(self.scale.dtype).mul_(self.scale.to(images.device)).add_(self.shift.to(images.device))


class RandomCropFlip:
    """Pads with zeros, cuts out a random window and mirrors every other image.

    What torchvision's ``RandomCrop`` and ``RandomHorizontalFlip`` do one after the other, with a draw for each image.

    Args:
        size: Height and width of the window, in pixels.
        padding: Pixels added on each side beforehand.
        flip: Whether to mirror left and right, with probability 1/2.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2) + 1
        >>> RandomCropFlip(size=2, padding=1)(image, draws=torch.tensor([[0.0, 0.5, 0.9]]))
        tensor([[[[0, 0],
                  [1, 2]]]], dtype=torch.uint8)
    """

    num_draws = 3

    def __init__(self, size: int, padding: int = 0, flip: bool = True) -> None:
        self.size = size
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Vary images of shape (B, channels, H, W) by draws of shape (B, 3): top, left, flip (below 1/2)."""
        num, channels = images.shape[:2]
        if self.flip:
            images = torch.cat([images, images.flip(-1)])
        images = pad(images, (self.padding,) * 4).contiguous()
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise BadValue(
                f"images of {height} x {width} pixels, padding included, hold no window of {self.size} x {self.size}: "
                "set size (--data.size) smaller, or more padding."
            )
        top = (draws[:, 0] * (height - self.size + 1)).long()
        left = (draws[:, 1] * (width - self.size + 1)).long()
        source = torch.arange(num, device=images.device)
        if self.flip:
            flipped = draws[:, 2] < 0.5
            left = torch.where(flipped, width - self.size - left, left)  # the same window, seen in the mirror
            source = torch.where(flipped, source + num, source)
        # Each row of a window is a run of `size` pixels: one gather of runs, five times faster than one of pixels.
        plane = source.view(-1, 1, 1) * channels + torch.arange(channels, device=images.device).view(1, -1, 1)
        row = plane * height + top.view(-1, 1, 1) + torch.arange(self.size, device=images.device)
        start = (row * width + left.view(-1, 1, 1)).flatten()
        runs = images.flatten().unfold(0, self.size, 1)
        return runs.index_select(0, start).view(num, channels, self.size, self.size)
