"""MNIST and Fashion-MNIST, from the files and folders that torchvision uses."""

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.image import Normalize
from noisylightning.data.locations import default_data_dir
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.transition import MNIST_FLIPS


def read_idx(path: Path) -> Tensor:
    """Read a file of MNIST's format, plain or gzipped.

    Args:
        path: The plain file; ``path.gz`` is taken where only that exists.

    Returns:
        uint8 tensor of the shape that the file's head gives.

    Raises:
        FileNotFoundError: If neither exists.
        ValueError: If the file is not of the format or is cut short.
    """
    zipped = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            content = path.read_bytes()
        elif zipped.is_file():
            path = zipped
            content = gzip.decompress(zipped.read_bytes())
        else:
            raise NoSuchFile(
                f"no {path.name}[.gz] in {path.parent}: set data_dir or NOISYLIGHTNING_DATA to the folder that holds "
                f"{path.parent.parent.name}/raw (--data.data_dir), or download=True (--data.download true)."
            )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadValue(f"{path} is truncated or corrupt ({error}): fetch it again.") from error
    # bytes 0 and 1 are zero, 2 is the type (8: uint8), 3 the number of dimensions, then their sizes, big-endian
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise BadValue(f"{path} is not a file of MNIST's format, it begins {content[:4]!r}: fetch it again.")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise BadValue(f"{path} is truncated, {len(content)} bytes for values of shape {shape}: fetch it again.")
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    return torch.from_numpy(values.reshape(shape).copy())


class MNISTDataModule(NoisyDataModule):
    """MNIST: 60,000 images of digits to train and validate, 10,000 to test.

    Inputs are normalised float images of shape (1, 28, 28), kept in memory as uint8.

    Args:
        data_dir: Folder that holds ``MNIST/raw``, as torchvision lays it out; by default what the environment variable
            ``NOISYLIGHTNING_DATA`` names, else ``data``.
        download: Whether to fetch files that are missing.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        FileNotFoundError: At ``setup``, if the files are not there.
        ValueError: At ``setup``, if one is truncated.

    Example:
        >>> from noisylightning.data import AsymmetricNoise
        >>> MNISTDataModule(noise=AsymmetricNoise(0.6)).num_classes
        10
    """

    num_classes = 10
    class_names: Sequence[str] = tuple("0123456789")
    flips: ClassVar[Mapping[int, int] | None] = MNIST_FLIPS
    num_features = 784
    transform = Normalize(mean=[0.1307], std=[0.3081])
    dataset: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    def __init__(self, data_dir: str | Path | None = None, download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = default_data_dir() if data_dir is None else Path(data_dir)
        self.download = download

    def prepare_data(self) -> None:
        """Fetch the files where that is asked for, on one process."""
        if self.download:
            self.dataset(self.data_dir, download=True)

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The 60,000 training images."""
        return self._part("train")

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The 10,000 test images."""
        return self._part("t10k")

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        folder = self.data_dir / self.dataset.__name__ / "raw"
        images, labels = read_idx(folder / f"{part}-images-idx3-ubyte"), read_idx(folder / f"{part}-labels-idx1-ubyte")
        return images.unsqueeze(1), labels


class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST: 60,000 images of clothes to train and validate, 10,000 to test; the folder is ``FashionMNIST``.

    All else is as in :class:`MNISTDataModule`, but the paper gives no flips for it.
    """

    class_names = (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
    )  # fmt: skip
    flips = None
    transform = Normalize(mean=[0.2860], std=[0.3530])
    dataset = datasets.FashionMNIST
