"""Small pictures of image data, for the page of an audit."""

import io
from collections.abc import Iterator
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from noisylightning.audit.page import Thumbnails
from noisylightning.errors import BadValue

_BATCH = 64  # images in memory at once


class Readable(Protocol):
    """N inputs that are read by the batch, as data modules hold them; a tensor is one."""

    def __len__(self) -> int:
        """Number of inputs N."""

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The inputs at ``index``, int64 of shape ``(B,)``, stacked to shape ``(B, ...)``."""


def thumbnails_of(inputs: Readable, side: int = 96) -> Thumbnails | None:
    """Make small pictures of inputs, if they are images; what :func:`~noisylightning.audit.write_page` takes.

    Images are uint8, or floating point, of which each is then scaled so that its least value is black and its greatest
    white. Larger ones are made smaller, none larger. Those of one channel become PNG, the others JPEG.

    Args:
        inputs: All inputs of the training data, before the transform that the network needs: the ``inputs`` of the data
            set that a data module's ``estimation_dataloader()`` reads. Images are of shape ``(1, H, W)`` or
            ``(3, H, W)``.
        side: The longer side at most, in pixels.

    Returns:
        From places in the data to their pictures, read as they are taken; None where inputs are no images.

    Raises:
        ValueError: If ``side`` is below 1.

    Example:
        >>> thumbnails = thumbnails_of(torch.zeros(5, 1, 28, 28, dtype=torch.uint8))
        >>> [picture[1:4] for picture in thumbnails(torch.tensor([3, 0]))]
        [b'PNG', b'PNG']
        >>> thumbnails_of(torch.zeros(5, 20)) is None  # rows of a table
        True
    """
    if side < 1:
        raise BadValue(f"side must be at least one pixel, got {side}.")
    if not len(inputs) or not are_images(inputs[torch.tensor([0])]):
        return None

    def pictures(places: Tensor) -> Iterator[bytes]:
        for batch in places.split(_BATCH):
            for image in _to_bytes(inputs[batch].cpu()):
                yield _encoded(image, side)

    return pictures


def are_images(batch: Tensor) -> bool:
    """Whether a batch of inputs is one of images, ``(B, 1 or 3, H, W)``.

    Args:
        batch: The batch.
    """
    return batch.ndim == 4 and batch.shape[1] in (1, 3) and (batch.dtype == torch.uint8 or batch.is_floating_point())


def _to_bytes(images: Tensor) -> Tensor:
    """Images of shape ``(B, channels, H, W)`` as uint8."""
    if images.dtype == torch.uint8:
        return images
    low, high = images.float().flatten(1).aminmax(dim=1)
    spread = (high - low).where(high > low, 1)
    return ((images.float() - low.view(-1, 1, 1, 1)) / spread.view(-1, 1, 1, 1) * 255).round().to(torch.uint8)


def _encoded(image: Tensor, side: int) -> bytes:
    values = image.movedim(0, -1).contiguous().numpy()
    picture = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    picture.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    if picture.mode == "L":
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=85, subsampling=0)
    return file.getvalue()
