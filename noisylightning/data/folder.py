"""Your own images: a folder and a table of labels, a folder for each class, or a list of paths."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from noisylightning.data.class_names import class_names_in, class_number
from noisylightning.data.image_files import ImageFilesDataModule
from noisylightning.data.rows import read_lines, read_rows
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchFile


class ImageFolderDataModule(ImageFilesDataModule):
    r"""Your own images: a folder, and a table that says which label each image has, or a folder for each class.

    Args:
        root: Folder of the images.
        labels: Table for training and validation (``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``), an image a row. None
            takes the name of the folder within ``root`` that an image lies in as its class.
        test_root: Folder of the test images; by default ``root``, where there are ``test_labels``.
        test_labels: Table of test images with clean labels; None takes the folders in ``test_root``. Without either
            there is no test set.
        predict_root: Folder of images to predict, in order of their paths; None predicts the test set.
        class_names: Names of the classes in the order of their numbers; by default those that ``labels`` or the folders
            in ``root`` name, sorted.
        image_column: Column of the images' paths, from the folder of the images.
        label_column: Column of their labels: names of classes.
        kwargs: What every data module of image files takes, see :class:`ImageFilesDataModule`.

    Raises:
        FileNotFoundError: If a folder, a table or, at ``setup``, an image is missing.
        ValueError: If a table lacks a column or has a blank label, or one that is not among the classes; at ``setup``,
            if an image is corrupt; if there is neither a ``root`` nor ``class_names``.

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

    test_argument: ClassVar[str] = "test_labels"

    def __init__(
        self,
        root: str | Path | None = None,
        labels: str | Path | None = None,
        test_labels: str | Path | None = None,
        class_names: list[str] | None = None,
        image_column: str = "image",
        label_column: str = "label",
        test_root: str | Path | None = None,
        predict_root: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = None if root is None else Path(root)
        self.labels = None if labels is None else Path(labels)
        self.test_root = self.root if test_root is None else Path(test_root)
        self.test_labels = None if test_labels is None else Path(test_labels)
        self.predict_root = None if predict_root is None else Path(predict_root)
        self.has_test = test_labels is not None or test_root is not None
        self.image_column = image_column
        self.label_column = label_column
        if class_names is None:  # the classes must be known before the model is built
            if self.labels is None:
                class_names = class_names_in(_class_folders(self._training_folder()), f"The folder {self.root}")
            else:
                named = [row[label_column] for _, row in read_rows(self.labels, self._columns, "labels")]
                class_names = class_names_in(named, str(self.labels))
        self.class_names = class_names
        self.num_classes = len(class_names)

    def list_train(self) -> tuple[list[Path], Tensor]:
        """The images of ``labels``, or of the folders in ``root``."""
        return self._list(self._training_folder(), self.labels)

    def list_test(self) -> tuple[list[Path], Tensor]:
        """The images of ``test_labels``, or of the folders in ``test_root``."""
        if self.test_root is None:
            raise BadValue(
                f"{type(self).__name__} has no folder of the images in {self.test_labels}: set test_root "
                "(--data.test_root)."
            )
        return self._list(self.test_root, self.test_labels)

    def load_predict(self) -> tuple[Inputs, Tensor] | None:
        """The images in ``predict_root``, without labels."""
        if self.predict_root is None:
            return None
        paths = _images_in(self.predict_root)
        if not paths:
            raise BadValue(
                f"The folder {self.predict_root} holds no image: correct predict_root (--data.predict_root)."
            )
        return self.read_listed(paths, torch.full((len(paths),), -1))

    @property
    def _columns(self) -> dict[str, str | None]:
        return {self.image_column: "image_column", self.label_column: "label_column"}

    def _training_folder(self) -> Path:
        if self.root is None:
            raise BadValue(
                f"{type(self).__name__} has no folder of training images: set root (--data.root), or test a checkpoint "
                "(--ckpt_path), which knows class_names."
            )
        return self.root

    def _list(self, root: Path, table: Path | None) -> tuple[list[Path], Tensor]:
        paths, labels = [], []
        if table is None:
            for name in _class_folders(root):
                label = class_number(name, self.class_names, f"The folder {root / name}")
                found = _images_in(root / name)
                paths += found
                labels += [label] * len(found)
        else:
            for line, row in read_rows(table, self._columns, "labels" if table == self.labels else "test_labels"):
                path = root / str(row[self.image_column])
                if not path.is_file():
                    raise NoSuchFile(f"{table}, line {line}, names the image {path}, which is not there: correct it.")
                paths.append(path)
                labels.append(class_number(row[self.label_column], self.class_names, f"{table}, line {line},"))
        return paths, torch.tensor(labels, dtype=torch.int64)


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise NoSuchFile(f"There is no folder {root}; correct root (--data.root) or test_root (--data.test_root).")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise BadValue(
            f"The folder {root} holds no folder for each class: make them, or set labels (--data.labels) to a table "
            "that says which label each image has."
        )
    return names


def _images_in(root: Path) -> list[Path]:
    """The images in a folder and in the folders within, in order of their paths; a warning counts other files."""
    if not root.is_dir():
        raise NoSuchFile(f"There is no folder {root}; correct the path.")
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in Image.registered_extensions()]
    if len(images) < len(files):
        first = next(path for path in files if path.suffix.lower() not in Image.registered_extensions())
        rank_zero_warn(f"{len(files) - len(images)} files in {root} are no images and left out, {first} the first.")
    return images


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

    test_argument: ClassVar[str] = "test_list"

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
                raise BadValue(
                    f"{file}, line {line}, has the label {label!r}, not among the {len(self.class_names)} classes: "
                    "correct it or class_names (--data.class_names)."
                )
            paths.append(root / (path if path.suffix else path.with_name(f"{path.name}.jpg")))
            labels.append(number[label])
        return paths, torch.tensor(labels, dtype=torch.int64)
