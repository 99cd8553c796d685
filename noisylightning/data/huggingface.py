"""Data sets of the Hugging Face ``datasets`` library (extra ``huggingface``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from noisylightning.data.class_names import class_names_in
from noisylightning.data.image_files import ImageFilesDataModule, ImageSource, square_image
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchPackage


class _ColumnImages(ImageSource):
    def __init__(self, dataset: Any, column: str, size: int) -> None:
        super().__init__(size)
        self.dataset = dataset.select_columns(column)
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, i: int) -> Tensor:
        try:
            return square_image(self.dataset[i][self.column], self.size)
        except Exception as error:
            raise BadValue(
                f"row {i} of the data set holds no image in column {self.column!r} ({error}): correct it or "
                "input_column (--data.input_column)."
            ) from error


class HuggingFaceDataModule(ImageFilesDataModule):
    """A data set of images or of rows of numbers from the Hugging Face ``datasets`` library.

    Images are treated as :class:`ImageFilesDataModule` treats files. Numbers are taken as they are, float of shape (F,)
    or that of the column.

    Args:
        dataset: Folder that ``save_to_disk`` wrote, name on the hub, or the loaded mapping of splits itself.
        train_split: Split for training and validation.
        test_split: Split with clean labels; None for no test set.
        predict_split: Split to predict, whose labels are not read; None predicts ``test_split``.
        input_column: Column of the inputs.
        label_column: Column of the labels.
        kwargs: What every data module of image files takes, see :class:`ImageFilesDataModule`.

    Raises:
        ModuleNotFoundError: If ``datasets`` is not installed.
        ValueError: If a split or a column is missing, or a label is blank.
    """

    test_argument: ClassVar[str] = "test_split"
    parts: ClassVar[tuple[str, ...]] = ("train_split", "test_split", "predict_split")

    def __init__(
        self,
        dataset: str | Path | Mapping[str, Any],
        train_split: str = "train",
        test_split: str | None = "test",
        predict_split: str | None = None,
        input_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.splits = dataset if isinstance(dataset, Mapping) else _load(str(dataset))
        self.train_split = train_split
        self.test_split = test_split
        self.predict_split = predict_split
        self.has_test = test_split is not None
        self.input_column = input_column
        self.label_column = label_column
        train = self._split(train_split)
        names = getattr(train.features[label_column], "names", None)  # ClassLabel knows them
        if names is None:
            named = [str(label) for label in train[label_column] if label is not None]
            names = class_names_in(named, f"the split {train_split!r}")
        self.class_names = names
        self.num_classes = len(self.class_names)
        if not self._holds_images(train):
            self.transform = self.augmentation = None

    def prepare_data(self) -> None:
        """Check the test labels, so that a fault in them shows before the training and not after."""
        if self.test_split is not None:
            self._labels(self.test_split)

    def load_train(self) -> tuple[Inputs, Tensor]:
        """The rows for training and validation."""
        return self._load_split(self.train_split)

    def load_test(self) -> tuple[Inputs, Tensor]:
        """The test rows."""
        assert self.test_split is not None
        return self._load_split(self.test_split)

    def load_predict(self) -> tuple[Inputs, Tensor] | None:
        """The rows to predict, without labels."""
        return None if self.predict_split is None else self._load_split(self.predict_split, labelled=False)

    @property
    def num_features(self) -> int:
        """Number of values of an image or a row, known before ``setup``."""
        split = self._split(self.train_split)
        return super().num_features if self._holds_images(split) else np.size(split[0][self.input_column])

    def _holds_images(self, split: Any) -> bool:
        return type(split.features[self.input_column]).__name__ == "Image"

    def _split(self, name: str, labelled: bool = True) -> Any:
        if name not in self.splits:
            option = next(part for part in self.parts if getattr(self, part) == name)
            raise BadValue(
                f"the data set has no split {name!r} (it has {', '.join(self.splits)}): set {option} "
                f"(--data.{option}) to one of these."
            )
        for option in ("input_column", "label_column")[: 2 if labelled else 1]:
            if (column := getattr(self, option)) not in self.splits[name].column_names:
                found = ", ".join(self.splits[name].column_names)
                raise BadValue(
                    f"the split {name!r} has no column {column!r} (it has {found}): set {option} "
                    f"(--data.{option}) to one of these."
                )
        return self.splits[name]

    def _labels(self, name: str) -> Tensor:
        split = self._split(name)
        number = {class_name: i for i, class_name in enumerate(self.class_names)}
        is_number = hasattr(split.features[self.label_column], "names")
        values = split[self.label_column]
        labels = []
        for i, value in enumerate(values):
            label = value if is_number else number.get(str(value).strip())
            if label is None or label == -1:
                raise BadValue(f"row {i} of the split {name!r} has the label {value!r}, which is no class: correct it.")
            labels.append(label)
        return torch.tensor(labels, dtype=torch.int64)

    def _load_split(self, name: str, labelled: bool = True) -> tuple[Inputs, Tensor]:
        split = self._split(name, labelled)
        labels = self._labels(name) if labelled else torch.full((len(split),), -1)
        if self._holds_images(split):
            return self.read(_ColumnImages(split, self.input_column, self.resize), labels)
        try:
            inputs = np.asarray(split.with_format("numpy")[self.input_column][:], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadValue(
                f"the column {self.input_column!r} of the split {name!r} holds neither images nor rows of numbers of "
                "one shape: set input_column (--data.input_column) to another."
            ) from error
        return torch.from_numpy(inputs).to(torch.get_default_dtype()), labels


def _load(name: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise NoSuchPackage(
            "a Hugging Face data set needs the datasets library: pip install 'noisylightning[huggingface]'."
        ) from None
    splits = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    if not isinstance(splits, Mapping):
        raise BadValue(
            f"{name} holds one split without a name: save a DatasetDict, with splits, and set dataset (--data.dataset) "
            "to it."
        )
    return splits
