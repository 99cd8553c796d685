"""Residual networks for small images (32x32): the CIFAR family of 6n + 2 layers, and ResNet-34 with a 3x3 stem."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from noisylightning.errors import BadValue
from noisylightning.models.features import feature_extractor


class _Subsample(nn.Module):
    """Shortcut of option A: every second pixel, new channels filled with zeros, no parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


def _stage(in_channels: int, channels: int, blocks: int, shortcut: Literal["A", "B"]) -> nn.Sequential:
    """Residual blocks of one width; the first halves the image if it widens the channels."""
    if channels == in_channels:
        return nn.Sequential(*(BasicBlock(channels, channels) for _ in range(blocks)))
    projection: nn.Module
    if shortcut == "A":
        projection = _Subsample(channels - in_channels)
    else:
        projection = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(channels)
        )
    first = BasicBlock(in_channels, channels, stride=2, downsample=projection)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


class CIFARResNet(nn.Sequential):
    """Residual network of 6n + 2 layers for 32x32 images (He et al. 2016, *Deep Residual Learning*, section 4.2).

    A 3x3 convolution of 16 channels, then three stages of n two-layer blocks with 16, 32 and 64 channels on 32x32,
    16x16 and 8x8 pixels, then the mean over pixels and one linear layer. Weights start from the normal
    distribution of He et al. (2015) with variance 2 / fan-in. The loss-correction paper trains depths 14 and 32 on
    CIFAR-10 and 44 on CIFAR-100.

    Args:
        depth: Number of weighted layers, 6n + 2: 14, 20, 32, 44, 56, 110 ...
        num_classes: Number of logits.
        shortcut: What a block that widens the channels adds to its output: ``"A"``, the subsampled input padded
            with zero channels (no parameters; the paper's choice on CIFAR-10), or ``"B"``, a 1x1 convolution.
        in_channels: Number of channels of the images.

    Shape:
        Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``; H and W need not be 32.

    Raises:
        ValueError: If ``depth`` is not 6n + 2 or ``shortcut`` is neither A nor B.

    Example:
        >>> import torch
        >>> model = CIFARResNet(depth=20, num_classes=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in model.parameters())  # 0.27 million in table 6 of He et al.
        269722
    """

    def __init__(self, depth: int, num_classes: int, shortcut: Literal["A", "B"] = "A", in_channels: int = 3) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise BadValue(
                f"CIFARResNet's depth must be 6n + 2, such as 14, 20, 32, 44, 56 or 110, got {depth}: set depth "
                "(--model.backbone.depth)."
            )
        if shortcut not in ("A", "B"):
            raise BadValue(
                f"CIFARResNet's shortcut must be 'A' (zero padding) or 'B' (1x1 convolution), got {shortcut!r}: "
                "set shortcut (--model.backbone.shortcut)."
            )
        super().__init__(
            nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            _stage(16, 16, blocks, shortcut),
            _stage(16, 32, blocks, shortcut),
            _stage(32, 64, blocks, shortcut),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def features(self, images: Tensor) -> Tensor:
        """Features ``(N, 64)``, what goes into the linear layer."""
        for layer in list(self)[:-1]:
            images = layer(images)
        return images


class ResNet34(ResNet):
    """ResNet-34 for 32x32 images: a 3x3 first convolution of stride one and no max-pooling.

    The network that the CIFAR-N benchmark (Wei et al. 2022, *Learning with Noisy Labels Revisited*) and most later
    work on noisy CIFAR labels trains; blocks and initial weights are torchvision's. For the ImageNet form take
    ``TorchvisionModel("resnet34", ...)``.

    Args:
        num_classes: Number of logits.
        in_channels: Number of channels of the images.

    Shape:
        Images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Example:
        >>> import torch
        >>> ResNet34(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(BasicBlock, [3, 4, 6, 3], num_classes=num_classes)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
        self.maxpool = nn.Identity()

    def features(self, images: Tensor) -> Tensor:
        """Features ``(N, 512)``, what goes into the linear layer."""
        return feature_extractor(self)(images)
