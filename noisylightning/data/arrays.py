"""NumPy arrays, tensors and pandas frames, given or in ``.npz`` files."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.class_names import class_names_in, class_number
from noisylightning.data.view import Augmentation, Transform
from noisylightning.errors import BadType, BadValue, NoSuchFile


class ArrayDataModule(NoisyDataModule):
    """Your own arrays, tensors or pandas frames.

    Samples go by their order; the index of a pandas frame means nothing here.

    Args:
        train: Inputs of shape (N, ...) for training and validation, the ``labels`` beside them; or both as a pair, or
            an ``.npz`` file of two arrays named ``inputs`` and ``labels``. Not needed to test or to predict a
            checkpoint.
        labels: Labels of shape (N,), class numbers or names; None where ``train`` holds them.
        test: A pair or a file of inputs and clean labels; None for no test set.
        predict: Inputs to predict, or an ``.npz`` file of an array ``inputs``; None predicts the test set.
        class_names: Names of the C classes in the order of their numbers; by default 0 to the largest label, or the
            names that the labels are, sorted.
        transform: From a batch of inputs to what the network takes, for example
            :class:`~noisylightning.data.Normalize` for uint8 images, which need it.
        augmentation: Random variation of training batches, applied before it.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        FileNotFoundError: If a file is missing.
        TypeError: If inputs are no numbers.
        ValueError: If a file lacks an array or is truncated, uint8 inputs have no transform, a label is no class, or
            there is neither ``train`` nor ``class_names``.

    Example:
        >>> data = ArrayDataModule(np.zeros((20, 4)), np.arange(20) % 2, batch_size=8)
        >>> data.setup("fit")
        >>> data.num_classes, data.num_features, next(iter(data.train_dataloader()))[0].shape
        (2, 4, torch.Size([8, 4]))
    """

    def __init__(
        self,
        train: Any = None,
        labels: Any = None,
        test: tuple[Any, Any] | str | Path | None = None,
        predict: Any = None,
        class_names: list[str] | None = None,
        transform: Transform | None = None,
        augmentation: Augmentation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if labels is not None and isinstance(train, tuple):
            raise BadValue(
                f"{type(self).__name__} was given a pair of inputs and labels, and labels beside it: give the test data"
                " by name, test=(inputs, labels)."
            )
        self.train = train if labels is None else (train, labels)
        self.test = test
        self.predict = predict
        self.has_test = test is not None
        self.transform = transform
        self.augmentation = augmentation
        if class_names is None:  # the classes must be known before the model is built
            class_names = _classes_of(_values(self._array("train", "labels")))
        self.class_names = class_names
        self.num_classes = len(class_names)

    @property
    def num_features(self) -> int:
        """Number of values of a sample, known before ``setup``."""
        part = next(part for part in ("train", "test", "predict") if getattr(self, part) is not None)
        return int(np.prod(np.shape(self._array(part, "inputs"))[1:]))

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The arrays for training and validation."""
        return self._inputs("train"), self._labels("train")

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The test arrays."""
        return self._inputs("test"), self._labels("test")

    def load_predict(self) -> tuple[Tensor, Tensor] | None:
        """The inputs to predict, without labels."""
        if self.predict is None:
            return None
        inputs = self._inputs("predict")
        return inputs, torch.full((len(inputs),), -1)

    def _inputs(self, part: str) -> Tensor:
        found = _values(self._array(part, "inputs"))
        if isinstance(found, np.ndarray) and found.dtype.kind not in "buif":
            raise BadType(
                f"{type(self).__name__}'s inputs to {part} must be numbers, got {found.dtype}: encode what is none, or "
                "leave it out."
            )
        inputs = torch.as_tensor(found)
        if inputs.dtype == torch.uint8 and self.transform is None:
            raise BadValue(
                "uint8 inputs need a transform before a network takes them: give transform (--data.transform), for "
                "example Normalize(mean, std)."
            )
        return inputs.to(torch.get_default_dtype()) if inputs.is_floating_point() else inputs

    def _labels(self, part: str) -> Tensor:
        labels = _values(self._array(part, "labels"))
        if not _are_names(labels):
            return torch.as_tensor(labels)
        names, places = np.unique(labels.astype(str), return_inverse=True)
        numbers = [class_number(name, self.class_names, f"The array of labels to {part}") for name in names.tolist()]
        return torch.tensor(numbers, dtype=torch.int64)[torch.from_numpy(places)]

    def _array(self, part: str, name: str) -> Any:
        """One of the arrays of a part; of a file only that one is read."""
        source = getattr(self, part)
        if source is None:
            raise BadValue(
                f"{type(self).__name__} has no arrays to {part}: give {part} (--data.{part}), or test a checkpoint "
                "(--ckpt_path), which knows class_names."
            )
        if isinstance(source, str | Path):
            return array_in(Path(source), name)
        if part == "predict":
            return source
        if isinstance(source, tuple | list) and len(source) == 2:
            return source[("inputs", "labels").index(name)]
        raise BadValue(
            f"{type(self).__name__}'s {part} is a {type(source).__name__} without labels: give "
            f"{'the labels after it, or ' if part == 'train' else ''}a pair, {part}=(inputs, labels)."
        )


def _values(given: Any) -> Any:
    """A tensor as it is, all else as a NumPy array, which takes a pandas frame by position."""
    if isinstance(given, Tensor):
        return given
    values = np.asarray(given)
    return values if values.flags.writeable else values.copy()  # pandas lends its own, which torch would warn of


def _are_names(labels: Any) -> bool:
    if isinstance(labels, Tensor) or labels.dtype.kind in "buif":
        return False
    for i, label in enumerate(labels.tolist()):
        if not isinstance(label, str | int):  # what is missing is None, NaN or NA
            raise BadValue(
                f"The array of labels has {label!r} at sample {i}: give a class name or leave the sample out."
            )
    return True


def _classes_of(labels: Any) -> list[str]:
    if _are_names(labels):
        return class_names_in(labels.tolist(), "The array of labels")
    labels = torch.as_tensor(labels)
    return [str(c) for c in range(int(labels.max()) + 1)] if labels.numel() else []


def array_in(path: Path, name: str) -> Any:
    """Read one array of an ``.npz`` file.

    Args:
        path: The file; nothing in it is run.
        name: The array's name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks the array, or is truncated.
    """
    if not path.is_file():
        raise NoSuchFile(f"There are no arrays at {path}; correct the path.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return content[name]
    except KeyError:
        labels = "labels" if name == "inputs" else name
        raise BadValue(
            f"{path} has no array {name!r}: write it by numpy.savez(path, inputs=..., {labels}=...)."
        ) from None
    except (ValueError, TypeError, AttributeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise BadValue(f"{path} is truncated or no .npz of plain arrays ({error}): save it again.") from error
