"""Your own images: a folder and a table of labels, or a list of paths."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisylightning.data.image_files import ImageFilesDataModule
from noisylightning.data.rows import label_number, names_of, read_lines, read_records
from noisylightning.errors import BadValue, NoSuchFile


class ImageFolderDataModule(ImageFilesDataModule):
    r"""Your own images: a folder, and a table that says which label each image has.

    Args:
        root: Folder of the images.
        labels: Table for training and validation (``.csv``, ``.tsv`` or ``.jsonl``), an image a row.
        test_labels: Table of images with clean labels; None for no test set.
        class_names: Names of the classes in the order of their numbers; by default those that ``labels`` names, sorted.
        image_column: Column of the images' paths, from ``root``.
        label_column: Column of their labels: names of classes.
        kwargs: What every data module of image files takes, see :class:`ImageFilesDataModule`.

    Raises:
        FileNotFoundError: If a table, or at ``setup`` an image, is missing.
        ValueError: If a table lacks a column or has a blank label, or one that is not among the classes; at ``setup``,
            if an image is corrupt.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in "abcdefghij":
        ...     Image.new("RGB", (40, 30)).save(root / f"{name}.png")
        >>> rows = [f"{name}.png,{'cat' if name < 'f' else 'dog'}" for name in "abcdefghij"]
        >>> _ = (root / "labels.csv").write_text("\n".join(["image,label", *rows]))
        >>> data = ImageFolderDataModule(root, root / "labels.csv", size=32)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))[0].shape
        torch.Size([9, 3, 32, 32])
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path,
        test_labels: str | Path | None = None,
        class_names: list[str] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.labels = Path(labels)
        self.test_labels = None if test_labels is None else Path(test_labels)
        self.has_test = test_labels is not None
        self.columns = [image_column, label_column]
        if class_names is None:  # the classes must be known before the model is built
            named = [str(row[label_column]) for _, row in read_records(self.labels, self.columns)]
            class_names = names_of(named, str(self.labels))
        self.class_names = class_names
        self.num_classes = len(class_names)

    def list_train(self) -> tuple[list[Path], Tensor]:
        """The images of ``labels``."""
        return self._list(self.labels)

    def list_test(self) -> tuple[list[Path], Tensor]:
        """The images of ``test_labels``."""
        assert self.test_labels is not None
        return self._list(self.test_labels)

    def _list(self, table: Path) -> tuple[list[Path], Tensor]:
        paths, labels = [], []
        image_column, label_column = self.columns
        for line, row in read_records(table, self.columns):
            path = self.root / str(row[image_column])
            if not path.is_file():
                raise NoSuchFile(f"{table}, line {line}, names the image {path}, which is not there: correct it.")
            paths.append(path)
            labels.append(label_number(row[label_column], self.class_names, f"{table}, line {line},"))
        return paths, torch.tensor(labels, dtype=torch.int64)


class ImageListDataModule(ImageFilesDataModule):
    """Images in lists of paths, as WebVision and Food-101N have them.

    A line is ``path label``, with a space or a tab between, the label a class number or name; or a path alone, of which
    the folder is the class. A path without suffix is a ``.jpg``.

    Args:
        root: Folder that the paths start from.
        train_list: List for training and validation.
        class_names: Names of the classes in the order of their numbers, or a file with one a line.
        test_list: List of images with clean labels; None for no test set.
        test_root: Folder that its paths start from, if it is another.
        skip_lines: Lines at the head of ``train_list`` that hold column names.
        kwargs: What every data module of image files takes, see :class:`ImageFilesDataModule`.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a label is not among the classes.
    """

    def __init__(
        self,
        root: str | Path,
        train_list: str | Path,
        class_names: list[str] | str | Path,
        test_list: str | Path | None = None,
        test_root: str | Path | None = None,
        skip_lines: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.test_root = self.root if test_root is None else Path(test_root)
        self.train_list = Path(train_list)
        self.test_list = None if test_list is None else Path(test_list)
        self.has_test = test_list is not None
        self.skip_lines = skip_lines
        names = class_names if isinstance(class_names, list) else [line for _, line in read_lines(Path(class_names))]
        self.class_names = names
        self.num_classes = len(names)

    def list_train(self) -> tuple[list[Path], Tensor]:
        """The images of ``train_list``."""
        return self._list(self.train_list, self.root, self.skip_lines)

    def list_test(self) -> tuple[list[Path], Tensor]:
        """The images of ``test_list``."""
        assert self.test_list is not None
        return self._list(self.test_list, self.test_root, 0)

    def _list(self, file: Path, root: Path, skip: int) -> tuple[list[Path], Tensor]:
        number = {str(i): i for i in range(self.num_classes)} | {name: i for i, name in enumerate(self.class_names)}
        paths, labels = [], []
        for line, text in read_lines(file)[skip:]:
            parts = text.rsplit("\t" if "\t" in text else None, maxsplit=1)
            path = Path(parts[0])
            label = parts[1].strip() if len(parts) == 2 else path.parent.name
            if label not in number:
                raise BadValue(f"{file}, line {line}, has the label {label!r}, not among the {len(self.class_names)} "
                                 "classes: correct it or class_names.")  # fmt: skip
            paths.append(root / (path if path.suffix else path.with_name(f"{path.name}.jpg")))
            labels.append(number[label])
        return paths, torch.tensor(labels, dtype=torch.int64)
