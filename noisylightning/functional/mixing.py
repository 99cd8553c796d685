"""Samples and labels mixed in pairs: Mixup and CutMix."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from noisylightning.errors import BadValue


def mixup(inputs: Tensor, partners: Tensor, share: float) -> Tensor:
    """Mix each sample with a partner: ``share * x + (1 - share) * x[partners]``.

    Zhang et al. (2018, ICLR), equation 1.

    Args:
        inputs: Samples, floating, shape ``(N, ...)``.
        partners: Place of each sample's partner in the batch, int64, shape ``(N,)``.
        share: How much of a sample stays, in [0, 1].

    Returns:
        Shape ``(N, ...)``.

    Example:
        >>> mixup(torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0]), share=0.75)
        tensor([[1.],
                [3.]])
    """
    return share * inputs + (1 - share) * inputs.index_select(0, partners)


def cutmix(inputs: Tensor, partners: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Paste a rectangle of its partner over each image.

    Yun et al. (2019, ICCV), equation 1.

    Args:
        inputs: Images, shape ``(N, ..., H, W)``.
        partners: Place of each image's partner in the batch, int64, shape ``(N,)``.
        box: First and last row, first and last column, the last ones not included; see :func:`cutmix_box`.

    Returns:
        Shape ``(N, ..., H, W)``.

    Example:
        >>> cutmix(torch.tensor([[[1, 1]], [[2, 2]]]), torch.tensor([1, 0]), box=(0, 1, 1, 2))
        tensor([[[1, 2]],
        <BLANKLINE>
                [[2, 1]]])
    """
    top, bottom, left, right = box
    pasted = inputs.clone()
    pasted[..., top:bottom, left:right] = inputs[..., top:bottom, left:right].index_select(0, partners)
    return pasted


def cutmix_box(
    height: int, width: int, share: float, centre: tuple[float, float]
) -> tuple[tuple[int, int, int, int], float]:
    """The rectangle that CutMix pastes, and how much of an image stays beside it.

    Yun et al. (2019, ICCV), equation 2: of ``1 - share`` of the image's area, as far as it lies within the image.

    Args:
        height: Height H of the images.
        width: Their width W.
        share: How much of an image is to stay, in [0, 1].
        centre: Centre of the rectangle, down and across, as shares of height and width, in [0, 1).

    Returns:
        First and last row, first and last column, the last ones not included; and the share that stays.

    Example:
        >>> cutmix_box(8, 8, share=0.75, centre=(0.5, 0.0))
        ((2, 6, 0, 2), 0.875)
    """
    half = math.sqrt(1 - share) / 2

    def side(length: int, at: float) -> tuple[int, int]:
        middle, reach = int(at * length), int(half * length)
        return max(middle - reach, 0), min(middle + reach, length)

    (top, bottom), (left, right) = side(height, centre[0]), side(width, centre[1])
    return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / (height * width)


def pair_alike(partners: Tensor, trusted: Tensor) -> Tensor:
    """Partners of their own kind, trusted or not: a mixture of both kinds is neither, and has no loss.

    Args:
        partners: Place of each sample's partner in the batch, a permutation, int64, shape ``(N,)``.
        trusted: Which samples are trusted, bool, shape ``(N,)``.

    Returns:
        A permutation within each kind: the kind's places in the order that they have in ``partners``, shape ``(N,)``.

    Example:
        >>> pair_alike(torch.tensor([3, 1, 0, 2]), trusted=torch.tensor([False, True, False, True]))
        tensor([0, 3, 2, 1])
    """
    places = trusted.byte().argsort(stable=True)
    ordered = partners[trusted[partners].byte().argsort(stable=True)]
    return torch.empty_like(partners).index_copy_(0, places, ordered)


def mix_labels(labels: Tensor, partners: Tensor, share: float, num_classes: int) -> Tensor:
    """Labels of mixed samples: each sample's own with weight ``share``, its partner's with the rest.

    Every loss is linear in the label's probabilities, so the mixed label's loss is the mixture of the two losses, with
    any correction.

    Args:
        labels: Class indices of shape ``(N,)``, or probabilities ``(N, C)``.
        partners: Place of each sample's partner in the batch, int64, shape ``(N,)``.
        share: How much of a sample stays, in [0, 1].
        num_classes: Number of classes C.

    Returns:
        Probabilities of shape ``(N, C)``.

    Raises:
        ValueError: If labels have another shape.

    Example:
        >>> mix_labels(torch.tensor([0, 2]), torch.tensor([1, 0]), share=0.75, num_classes=3)
        tensor([[0.7500, 0.0000, 0.2500],
                [0.2500, 0.0000, 0.7500]])
    """
    soft = labels.is_floating_point()
    if labels.shape[1:] != ((num_classes,) if soft else ()):
        raise BadValue(
            f"labels to mix must be class indices of shape (N,) or probabilities of shape (N, {num_classes}), got"
            f" {labels.dtype} of shape {tuple(labels.shape)}: mix samples that have one label each."
        )
    probabilities = labels if soft else F.one_hot(labels, num_classes).to(torch.get_default_dtype())
    return mixup(probabilities, partners, share)
