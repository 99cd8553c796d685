"""From stored uint8 images to what a network takes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """From uint8 images to ``(image / 255 - mean) / std`` by channel, a batch at once.

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
