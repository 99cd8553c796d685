"""Your own table: a row a sample, columns of numbers, and a column of labels."""

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.class_names import class_names_in, class_number
from noisylightning.data.rows import read_rows
from noisylightning.errors import BadValue


class TableDataModule(NoisyDataModule):
    r"""Your own table of numbers and labels.

    Inputs are the features of a row, float of shape (F,), each brought to mean 0 and standard deviation 1 by those of
    the training table; a feature that is constant there becomes 0. Means and deviations, columns and classes are saved
    with every checkpoint: to test and to predict, ``train_file`` can be left out.

    Args:
        train_file: Table for training and validation: ``.csv``, ``.tsv`` or ``.jsonl``, perhaps compressed (``.gz``,
            ``.xz``), or ``.parquet`` (with the extra ``parquet``).
        test_file: Table with clean labels; None for no test set.
        predict_file: Table of rows to predict, whose labels may be blank or the column left out; None predicts
            ``test_file``.
        label_column: Column of the labels: names of classes.
        feature_columns: Columns of the features, all of numbers; by default every column but the labels'.
        class_names: Names of the classes in the order of their numbers; by default those in ``train_file``, sorted.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Attributes:
        num_features: Number of features F, known before ``setup``.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If a column is missing, a label is blank or not among the classes, or a feature is no number; if
            there is neither a ``train_file`` nor ``class_names`` and ``feature_columns``; if a checkpoint to resume
            from was made with another training table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.csv"
        >>> _ = path.write_text("height,weight,label\n" + "181,77,cat\n160,52,dog\n" * 10)
        >>> data = TableDataModule(path)
        >>> data.num_features, data.class_names
        (2, ['cat', 'dog'])
        >>> data.setup("fit")
        >>> next(iter(data.estimation_dataloader()))[0][:2]
        tensor([[ 1.,  1.],
                [-1., -1.]])
    """

    learnt_arguments = ("feature_columns", "class_names")
    test_argument: ClassVar[str] = "test_file"

    def __init__(
        self,
        train_file: str | Path | None = None,
        test_file: str | Path | None = None,
        predict_file: str | Path | None = None,
        label_column: str = "label",
        feature_columns: list[str] | None = None,
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.train_file = None if train_file is None else Path(train_file)
        self.test_file = None if test_file is None else Path(test_file)
        self.predict_file = None if predict_file is None else Path(predict_file)
        self.has_test = test_file is not None
        self.label_column = label_column
        if feature_columns is None or class_names is None:  # both must be known before the model is built
            read = read_rows(self._training_file(), {label_column: "label_column"}, "train_file")
            rows = [row for _, row in read]
            if not rows:
                raise BadValue(f"{train_file} has no row: correct train_file (--data.train_file).")
            if feature_columns is None:
                feature_columns = [column for column in rows[0] if column != label_column]
            if class_names is None:
                class_names = class_names_in([row[label_column] for row in rows], str(train_file))
        self.feature_columns = feature_columns
        self.num_features = len(feature_columns)
        self.class_names = class_names
        self.num_classes = len(class_names)
        self._table: tuple[Tensor, Tensor] | None = None
        self._mean: Tensor | None = None
        self._std: Tensor | None = None

    def prepare_data(self) -> None:
        """Read the test table, so that a fault in it shows before the training and not after."""
        if self.test_file is not None:
            self._read(self.test_file)

    def load_train(self) -> tuple[Tensor, Tensor]:
        """Features and labels for training and validation."""
        features, labels = self._training_table()
        return self._standardized(features), labels

    def load_test(self) -> tuple[Tensor, Tensor]:
        """Test features, by the means and deviations of the training table, and clean labels."""
        assert self.test_file is not None
        features, labels = self._read(self.test_file)
        return self._standardized(features), labels

    def load_predict(self) -> tuple[Tensor, Tensor] | None:
        """Features to predict, and their labels, -1 where there is none."""
        if self.predict_file is None:
            return None
        features, labels = self._read(self.predict_file, labelled=False)
        return self._standardized(features), labels

    @property
    def is_fitted(self) -> bool:
        """Whether means and deviations are known."""
        return self._mean is not None

    def state_dict(self) -> dict[str, Any]:
        """Columns, classes, means and deviations, for the checkpoint."""
        return {**super().state_dict(), "mean": self._mean, "std": self._std} if self.is_fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take means and deviations over from a checkpoint.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If columns or classes are others, or a training table has been read that has others.
        """
        super().load_state_dict(state_dict)
        if not state_dict:
            return
        for name in ("mean", "std"):
            if self._train is not None and not torch.allclose(getattr(self, f"_{name}"), state_dict[name], rtol=1e-9):
                raise BadValue(
                    f"The checkpoint was made with another training table than {self.train_file}, whose {name} "
                    "differs: set train_file (--data.train_file) to the checkpoint's, or test and predict without it."
                )
        self._mean, self._std = state_dict["mean"], state_dict["std"]
        self._read_anew()

    def _training_file(self) -> Path:
        if self.train_file is None:
            raise BadValue(
                f"{type(self).__name__} has no training table: set train_file (--data.train_file), or test a "
                "checkpoint (--ckpt_path), which knows feature_columns, class_names and the scaling."
            )
        return self.train_file

    def _training_table(self) -> tuple[Tensor, Tensor]:
        if self._table is None:
            self._table = self._read(self._training_file())
        return self._table

    def _standardized(self, features: Tensor) -> Tensor:
        if self._mean is None or self._std is None:
            self._std, self._mean = torch.std_mean(self._training_table()[0], dim=0, correction=0)
        scale = torch.where(self._std > 0, self._std, torch.inf)
        return ((features - self._mean) / scale).to(torch.get_default_dtype())

    def _read(self, path: Path, labelled: bool = True) -> tuple[Tensor, Tensor]:
        columns: dict[str, str | None] = dict.fromkeys(self.feature_columns, "feature_columns")
        if labelled:
            columns[self.label_column] = "label_column"
        features, labels = [], []
        option = next(name for name in ("train_file", "test_file", "predict_file") if getattr(self, name) == path)
        for line, row in read_rows(path, columns, option):
            where = f"{path}, line {line},"
            label = row[self.label_column] if labelled else row.get(self.label_column)
            unknown = not labelled and str("" if label is None else label).strip() == ""
            labels.append(-1 if unknown else class_number(label, self.class_names, where))
            features.append([_number(row[column], column, where) for column in self.feature_columns])
        if not features:
            raise BadValue(f"{path} has no row: correct the path.")
        return torch.tensor(features, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadValue(
            f"{where} has {value!r} in column {column!r}, not a finite number: fill it in, encode it, or set "
            "feature_columns (--data.feature_columns) without it."
        )
    return number
