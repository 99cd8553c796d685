"""NumPy arrays and tensors, given or in ``.npz`` files."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.view import Augmentation, Transform
from noisylightning.errors import BadValue, NoSuchFile


class ArrayDataModule(NoisyDataModule):
    """Your own arrays or tensors.

    Args:
        train: Inputs of shape (N, ...) and integer labels of shape (N,) for training and validation, or an ``.npz``
            file of two arrays named ``inputs`` and ``labels``.
        test: The same with clean labels; None for no test set.
        class_names: Names of the C classes in the order of their numbers; by default 0 to the largest label.
        transform: From a batch of inputs to what the network takes, for example
            :class:`~noisylightning.data.Normalize` for uint8 images, which need it.
        augmentation: Random variation of training batches, applied before it.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file lacks an array or is truncated, or uint8 inputs have no transform.

    Example:
        >>> data = ArrayDataModule(train=(np.zeros((20, 4)), np.arange(20) % 2), batch_size=8)
        >>> data.setup("fit")
        >>> data.num_classes, next(iter(data.train_dataloader()))[0].shape
        (2, torch.Size([8, 4]))
    """

    def __init__(
        self,
        train: tuple[Any, Any] | str | Path,
        test: tuple[Any, Any] | str | Path | None = None,
        class_names: list[str] | None = None,
        transform: Transform | None = None,
        augmentation: Augmentation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.train = train
        self.test = test
        self.has_test = test is not None
        self.transform = transform
        self.augmentation = augmentation
        if class_names is None:  # the classes must be known before the model is built
            labels = torch.as_tensor(_array(train, "labels"))
            class_names = [str(c) for c in range(int(labels.max()) + 1)] if len(labels) else []
        self.class_names = class_names
        self.num_classes = len(class_names)

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The arrays for training and validation."""
        return self._read(self.train)

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The test arrays."""
        return self._read(self.test)

    def _read(self, source: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = torch.as_tensor(_array(source, "inputs")), torch.as_tensor(_array(source, "labels"))
        if inputs.dtype == torch.uint8 and self.transform is None:
            raise BadValue("uint8 inputs need a transform before a network takes them: give Normalize(mean, std).")
        if inputs.is_floating_point():
            inputs = inputs.to(torch.get_default_dtype())
        return inputs, labels


def _array(source: Any, name: str) -> Any:
    """One of the two arrays of a pair or a file; of a file only that one is read."""
    if isinstance(source, tuple | list):
        return source[("inputs", "labels").index(name)]
    path = Path(source)
    if not path.is_file():
        raise NoSuchFile(f"no arrays at {path}: correct the path.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return content[name]
    except KeyError:
        raise BadValue(
            f"{path} has no array {name!r}: write it by numpy.savez(path, inputs=..., labels=...)."
        ) from None
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise BadValue(f"{path} is truncated or no .npz of plain arrays ({error}): save it again.") from error
