"""Clothing1M: a million shop images with the shop's labels, and 72,409 with labels by hand."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from noisylightning.data.image_files import ImageFilesDataModule
from noisylightning.data.rows import read_lines
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue


class Clothing1MDataModule(ImageFilesDataModule):
    """Clothing1M (Xiao et al. 2015): 14 kinds of clothes, about 38 % of the shop's labels wrong.

    The million noisy images train and validate; the 47,570 clean training images are the trusted set; the 10,526 clean
    test images test. No image is in two of these.

    Args:
        root: The folder as it is handed out: ``images/``, ``noisy_train_key_list.txt`` and the other key lists,
            ``noisy_label_kv.txt``, ``clean_label_kv.txt``.
        validation: ``"noisy"`` validates on a part of the noisy images, ``"clean"`` on the 14,313 of the official clean
            validation set, and trains on all noisy ones.
        kwargs: What every data module of image files takes, see :class:`ImageFilesDataModule`.

    Raises:
        FileNotFoundError: At ``setup``, if a list is missing.
        ValueError: At ``setup``, if an image has no label.
    """

    num_classes = 14
    class_names = (
        "T-shirt", "shirt", "knitwear", "chiffon", "sweater", "hoodie", "windbreaker", "jacket", "down coat", "suit",
        "shawl", "dress", "vest", "underwear",
    )  # fmt: skip

    def __init__(self, root: str | Path, validation: Literal["noisy", "clean"] = "noisy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.validation = validation

    def list_train(self) -> tuple[list[Path], Tensor]:
        """The million noisy images."""
        return self._list("noisy_train")

    def list_test(self) -> tuple[list[Path], Tensor]:
        """The clean test images."""
        return self._list("clean_test")

    def load_val(self) -> tuple[Inputs, Tensor] | None:
        """The clean validation images, where they are asked for."""
        return self.read_listed(*self._list("clean_val")) if self.validation == "clean" else None

    def load_trusted(self) -> tuple[Inputs, Tensor]:
        """The clean training images."""
        return self.read_listed(*self._list("clean_train"))

    def _list(self, part: str) -> tuple[list[Path], Tensor]:
        table = self.root / f"{part.split('_')[0]}_label_kv.txt"
        label_of: dict[str, int] = {}
        for line, text in read_lines(table):
            image, _, label = text.rpartition(" ")
            if not (label.isdecimal() and int(label) < self.num_classes):
                raise BadValue(f"{table}, line {line}, has the label {label!r}, not one of 0..13: fetch it again.")
            label_of[image] = int(label)
        keys = self.root / f"{part}_key_list.txt"
        paths, labels = [], []
        for line, image in read_lines(keys):
            if image not in label_of:
                raise BadValue(f"{keys}, line {line}, names {image}, without a label in {table}: fetch both again.")
            paths.append(self.root / image)
            labels.append(label_of[image])
        return paths, torch.tensor(labels, dtype=torch.int64)
