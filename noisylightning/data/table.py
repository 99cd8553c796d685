"""Your own table: a row a sample, columns of numbers, and a column of labels."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.rows import label_number, names_of, read_records
from noisylightning.errors import BadValue, NoSuchFile, NoSuchPackage


class TableDataModule(NoisyDataModule):
    r"""Your own table of numbers and labels.

    Inputs are the features of a row, float of shape (F,), each brought to mean 0 and standard deviation 1 by those of
    the training table; a feature that is constant there becomes 0.

    Args:
        train_file: Table for training and validation: ``.csv``, ``.tsv`` or ``.jsonl``, perhaps compressed (``.gz``,
            ``.xz``), or ``.parquet`` (with the extra ``parquet``).
        test_file: Table with clean labels; None for no test set.
        label_column: Column of the labels: names of classes.
        feature_columns: Columns of the features, all of numbers; by default every column but the labels'.
        class_names: Names of the classes in the order of their numbers; by default those in ``train_file``, sorted.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Attributes:
        num_features: Number of features F, known before ``setup``.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If a column is missing, a label is blank or not among the classes, or a feature is no number.

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

    def __init__(
        self,
        train_file: str | Path,
        test_file: str | Path | None = None,
        label_column: str = "label",
        feature_columns: list[str] | None = None,
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.train_file = Path(train_file)
        self.test_file = None if test_file is None else Path(test_file)
        self.has_test = test_file is not None
        self.label_column = label_column
        rows = [row for _, row in read_rows(self.train_file, [label_column])]
        if not rows:
            raise BadValue(f"{train_file} has no row: correct the path.")
        if feature_columns is None:
            feature_columns = [column for column in rows[0] if column != label_column]
        self.feature_columns = feature_columns
        self.num_features = len(feature_columns)
        if class_names is None:
            class_names = names_of([str(row[label_column]) for row in rows], str(train_file))
        self.class_names = class_names
        self.num_classes = len(self.class_names)
        self._features_and_labels: tuple[Tensor, Tensor] | None = None

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

    def _training_table(self) -> tuple[Tensor, Tensor]:
        if self._features_and_labels is None:
            self._features_and_labels = self._read(self.train_file)
        return self._features_and_labels

    def _standardized(self, features: Tensor) -> Tensor:
        std, mean = torch.std_mean(self._training_table()[0], dim=0, correction=0)
        return ((features - mean) / torch.where(std > 0, std, torch.inf)).to(torch.get_default_dtype())

    def _read(self, path: Path) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        for line, row in read_rows(path, [self.label_column, *self.feature_columns]):
            where = f"{path}, line {line},"
            labels.append(label_number(row[self.label_column], self.class_names, where))
            features.append([_number(row[column], column, where) for column in self.feature_columns])
        return torch.tensor(features, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64)


def _number(value: Any, column: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadValue(
            f"{where} has {value!r} in column {column!r}, not a finite number: fill it in, encode it, or leave it "
            "out of feature_columns."
        )
    return number


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table row by row, Parquet too.

    Args:
        path: The file; its suffix tells the format.
        columns: Columns that must be there.

    Yields:
        The line, or in Parquet the row counted from 1, and its fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or a column is missing.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    if path.suffix != ".parquet":
        yield from read_records(path, columns)
        return
    if not path.is_file():
        raise NoSuchFile(f"no table {path}: correct the path.")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise NoSuchPackage(
            f"{path} is Parquet, which needs pyarrow: pip install 'noisylightning[parquet]', or save it as CSV."
        ) from None
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadValue(f"{path} is truncated or no Parquet ({error}): write it again.") from error
    for column in columns:
        if column not in table.column_names:
            raise BadValue(f"{path} has no column {column!r} (it has {', '.join(table.column_names)}).")
    for line, row in enumerate(table.to_pylist(), start=1):
        yield line, {column: "" if value is None else value for column, value in row.items()}  # blank, as in CSV
