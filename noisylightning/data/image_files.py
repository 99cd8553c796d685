"""Images in files: held in memory where they fit, else decoded by workers; the base of the modules that read them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torchvision.transforms import v2

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.image import Normalize, RandomCropFlip
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchFile

MEMORY_LIMIT = 2**30
"""Bytes of decoded images that are held in memory without being asked, 1 GiB."""


def square_image(image: Image.Image, size: int) -> Tensor:
    """Turn an image upright, scale it to cover a square and cut that out of its middle.

    Args:
        image: A Pillow image of any kind.
        size: Side of the square, in pixels.

    Returns:
        uint8 tensor of shape (3, size, size).
    """
    image.draft("RGB", (size, size))  # a JPEG is decoded no larger than need be
    upright = ImageOps.exif_transpose(image).convert("RGB")
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class ImageSource(ABC):
    """Images that are decoded as they are asked for; workers do that side by side.

    Args:
        size: Side of the squares they are brought to, in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Read one image.

        Args:
            i: Its number.

        Returns:
            uint8 tensor of shape (3, size, size).

        Raises:
            ValueError: If it is corrupt or no image.
        """

    def name(self, i: int) -> str:
        """What an image is called; empty where it has no name.

        Args:
            i: Its number.
        """
        return ""

    def content(self, i: int) -> bytes:
        """What an image is known by, for a checksum: its file, or its pixels.

        Args:
            i: Its number.
        """
        return self.read(i).numpy().tobytes()

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """Images at ``index``, uint8 of shape (B, 3, size, size)."""
        return torch.stack([self.read(i) for i in index.tolist()])

    def all(self) -> Tensor:
        """Every image, decoded by as many threads as there are processors."""
        images = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)

        def read(i: int) -> None:
            images[i] = self.read(i)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(read, range(len(self))):
                pass
        return images

    def corrupt(self) -> dict[int, str]:
        """The images that cannot be read, with what is wrong; reads them all."""

        def fault(i: int) -> str | None:
            try:
                self.read(i)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return {i: text for i, text in enumerate(pool.map(fault, range(len(self)))) if text is not None}


class ImageFiles(ImageSource):
    """Images in files of any format that Pillow reads.

    Args:
        paths: The N files.
        size: Side of the squares they are brought to, in pixels.
    """

    def __init__(self, paths: Sequence[str | Path], size: int) -> None:
        super().__init__(size)
        # one array: a list of a million strings would be copied into every worker, page by page
        self.paths = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path of an image."""
        return os.fsdecode(self.paths[i])

    def content(self, i: int) -> bytes:
        """The bytes of an image's file."""
        path = Path(self.name(i))
        try:
            return path.read_bytes()
        except OSError as error:
            raise NoSuchFile(f"There is no image {path} to read ({error.strerror}); correct the path.") from error

    def read(self, i: int) -> Tensor:
        """Read one image, see :meth:`ImageSource.read`."""
        path = os.fsdecode(self.paths[i])
        try:
            with Image.open(path) as image:
                return square_image(image, self.size)
        except FileNotFoundError:
            raise NoSuchFile(f"There is no image {path}; correct the path or its line in the list.") from None
        # Pillow's readers raise OSError, ValueError, SyntaxError and struct.error, each for its own kind of damage
        except Exception as error:
            raise BadValue(
                f"the image {path} is corrupt or no image ({error}): replace it, or set "
                "skip_corrupt (--data.skip_corrupt) to go without."
            ) from error


class _Chosen(ImageSource):
    """Some of the images of a source."""

    def __init__(self, source: ImageSource, index: list[int]) -> None:
        super().__init__(source.size)
        self.source, self.index = source, np.array(index)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        return self.source.name(int(self.index[i]))

    def content(self, i: int) -> bytes:
        return self.source.content(int(self.index[i]))

    def read(self, i: int) -> Tensor:
        return self.source.read(int(self.index[i]))


class ImageFilesDataModule(NoisyDataModule):
    """Base of the data modules that read image files.

    A subclass overrides :meth:`list_train` and, where there is a test set, :meth:`list_test`. Each image is scaled to
    cover a square of ``resize`` pixels and cut to it. Training takes a random window of ``size`` pixels, mirrored at
    random; all else takes the middle one. Inputs are normalised float images of shape (3, size, size).

    Args:
        size: Side of the images that the network takes, in pixels.
        resize: Side of the squares that they are cut from; by default 8/7 of ``size``, 256 for 224.
        augment: Whether training takes random windows and mirrors them; else it takes the middle one.
        in_memory: Whether to decode all images once and hold them. None does so up to 1 GiB.
        skip_corrupt: Whether to leave out images that cannot be read, with a warning; every image is read once for it.
        mean: Mean of each channel, of values in [0, 1]; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation of each channel, likewise.
        kwargs: What every data module takes, see :class:`NoisyDataModule`; set ``num_workers`` where the images are not
            held in memory.
    """

    def __init__(
        self,
        size: int = 224,
        resize: int | None = None,
        augment: bool = True,
        in_memory: bool | None = None,
        skip_corrupt: bool = False,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_memory = in_memory
        self.skip_corrupt = skip_corrupt
        self.augment = augment
        self._normalize = Normalize(mean, std)
        self._training_files: ImageSource | None = None
        self.scale_to(size, size * 8 // 7 if resize is None else resize)

    def scale_to(self, size: int, resize: int) -> None:
        """Say how large images are, before they are read; an encoder's size takes the place of one's own so.

        Args:
            size: Side of the images that the network takes, in pixels.
            resize: Side of the squares that they are cut from.

        Raises:
            ValueError: If ``resize`` is the smaller one.
        """
        if resize < size:
            raise BadValue(
                f"resize={resize} is smaller than size={size}: images cannot be cut larger, so set resize "
                "(--data.resize)."
            )
        self.size, self.resize = size, resize
        self.transform = v2.Compose([v2.CenterCrop(size), self._normalize])
        if self.augment:
            self.augmentation = RandomCropFlip(size)

    @property
    def num_features(self) -> int:
        """Number of values of an image, known before ``setup``."""
        return 3 * self.size**2

    @abstractmethod
    def list_train(self) -> tuple[Sequence[str | Path], Tensor]:
        """List the images for training and validation.

        Returns:
            N files, and their labels as they come, integers of shape (N,).
        """

    def list_test(self) -> tuple[Sequence[str | Path], Tensor]:
        """List the test images.

        Returns:
            Files, and their clean labels.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        """List the test images, so that a fault in the list shows before the training and not after."""
        if self.has_test:
            self.list_test()

    def load_train(self) -> tuple[Inputs, Tensor]:
        """Images for training and validation."""
        paths, labels = self.list_train()
        images, labels = self._readable(ImageFiles(paths, self.resize), labels)
        self._training_files = images
        return self._held(images), labels

    def sample_names(self) -> list[str] | None:
        """Paths of the training images, from the folder ``root`` where they are in it."""
        if self._training_files is None:
            return None
        root = getattr(self, "root", None)
        names = [Path(self._training_files.name(i)) for i in range(len(self._training_files))]
        return [str(path.relative_to(root) if root and path.is_relative_to(root) else path) for path in names]

    def load_test(self) -> tuple[Inputs, Tensor]:
        """Test images."""
        return self.read_listed(*self.list_test())

    def read_listed(self, paths: Sequence[str | Path], labels: Tensor) -> tuple[Inputs, Tensor]:
        """Make inputs of listed images, see :meth:`read`.

        Args:
            paths: N files.
            labels: Their labels, integers of shape (N,).

        Returns:
            The images, in memory or not, and their labels.
        """
        return self.read(ImageFiles(paths, self.resize), labels)

    def read(self, images: ImageSource, labels: Tensor) -> tuple[Inputs, Tensor]:
        """Make inputs of images: without the corrupt ones and decoded at once, where that is asked for.

        Args:
            images: N images.
            labels: Their labels, integers of shape (N,).

        Returns:
            The images, in memory or not, and their labels.
        """
        images, labels = self._readable(images, labels)
        return self._held(images), labels

    def _readable(self, images: ImageSource, labels: Tensor) -> tuple[ImageSource, Tensor]:
        if self.skip_corrupt and (corrupt := images.corrupt()):
            first = corrupt[min(corrupt)]
            rank_zero_warn(f"{len(corrupt)} of {len(images)} images are left out, the first because {first}")
            kept = [i for i in range(len(images)) if i not in corrupt]
            images, labels = _Chosen(images, kept), labels[kept]
        return images, labels

    def _held(self, images: ImageSource) -> Inputs:
        fits = len(images) * 3 * self.resize**2 <= MEMORY_LIMIT
        return images.all() if (fits if self.in_memory is None else self.in_memory) else images
