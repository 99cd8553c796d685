import gzip

import numpy as np
import pytest
import torch

from noisylightning.data.table import TableDataModule

X = np.random.default_rng(0).normal(3, 5, (60, 2))
NAMES = ["no", "yes"]
ROWS = [{"age": float(a), "income": float(b), "constant": 7.0, "sure": NAMES[i % 2]} for i, (a, b) in enumerate(X)]


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.parquet"])
def test_features_are_standardised_by_the_training_table(tmp_path, name):
    test = write(tmp_path / "test.csv", ROWS[:3])
    data = TableDataModule(write(tmp_path / name), test, label_column="sure")
    assert (data.num_classes, data.class_names, data.num_features) == (2, NAMES, 3)
    assert data.feature_columns == ["age", "income", "constant"]
    data.setup()
    features, labels = next(iter(data.estimation_dataloader()))
    expected = torch.from_numpy((X - X.mean(axis=0)) / X.std(axis=0)).float()
    torch.testing.assert_close(features[:, :2], expected)
    assert features[:, 2].eq(0).all()
    assert labels.tolist() == [i % 2 for i in range(60)]
    torch.testing.assert_close(next(iter(data.test_dataloader()))[0], features[:3])


def test_columns_and_classes_can_be_chosen(tmp_path):
    data = TableDataModule(
        write(tmp_path / "train.csv"), label_column="sure", feature_columns=["income"], class_names=["yes", "no"]
    )
    data.setup("fit")
    features, labels = next(iter(data.estimation_dataloader()))
    assert features.shape == (60, 1)
    assert labels[:2].tolist() == [1, 0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"age": None}, r", line 2, has (''|None) in column 'age', not a finite number"),
        ({"age": float("nan")}, r", line 2, has ('nan'|nan) in column 'age', not a finite number"),
        ({"sure": None}, ", line 2, has no label"),
        ({"sure": " "}, ", line 2, has no label"),
        ({"sure": "maybe"}, ", line 2, has the label 'maybe', not among the classes no, yes"),
    ],
)
def test_a_bad_row_is_named(tmp_path, suffix, change, words):
    rows = [{key: "" if value is None and suffix == "csv" else value for key, value in (ROWS[0] | change).items()}]
    path = write(tmp_path / f"train.{suffix}", rows + ROWS[1:])
    with pytest.raises(ValueError, match=words.replace("line 2", "line 2" if suffix == "csv" else "line 1")):
        TableDataModule(path, label_column="sure", class_names=NAMES).setup("fit")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_bad_table_is_named(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    with pytest.raises(FileNotFoundError, match=rf"train\.{suffix}"):
        TableDataModule(path)
    write(path)
    with pytest.raises(ValueError, match="no column 'label'"):
        TableDataModule(path)
    with pytest.raises(ValueError, match="no column 'height'"):
        TableDataModule(path, label_column="sure", feature_columns=["height"]).setup("fit")


def test_a_truncated_parquet_file_is_named(tmp_path):
    path = write(tmp_path / "train.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train\.parquet is truncated or no Parquet"):
        TableDataModule(path, label_column="sure")


def test_a_table_without_rows_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("a,label\n")
    with pytest.raises(ValueError, match=r"train\.csv has no row"):
        TableDataModule(tmp_path / "train.csv")


def test_a_fault_in_the_test_table_shows_before_the_training(tmp_path):
    train, test = write(tmp_path / "train.csv"), write(tmp_path / "test.csv", [ROWS[0] | {"sure": "maybe"}])
    with pytest.raises(ValueError, match=r"test\.csv, line 2, has the label 'maybe'"):
        TableDataModule(train, test_file=test, label_column="sure").prepare_data()
