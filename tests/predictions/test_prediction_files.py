"""Tables of many rows on the disk."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisylightning.errors import UserError
from noisylightning.predictions.files import read_rows, write_rows


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_rows_written_in_parts_are_read_whole(suffix, tmp_path):
    table = {"x": np.arange(12.0).reshape(6, 2), "name": np.array(["a", "b", "c"] * 2), "yes": np.arange(6) > 2}
    parts = ({key: array[start : start + 4] for key, array in table.items()} for start in (0, 4))
    write_rows(tmp_path / f"t{suffix}", parts, ["one", "two"])
    found, names = read_rows(tmp_path / f"t{suffix}")
    assert names == ["one", "two"]
    assert found.keys() == table.keys()
    assert all((found[key] == table[key]).all() and len(found[key]) == 6 for key in table)
    assert [path.name for path in tmp_path.iterdir()] == [f"t{suffix}"]


def test_numpy_reads_what_was_written(tmp_path):
    write_rows(tmp_path / "t.npz", [{"x": np.ones((2, 3), np.float16)}], ["a"])
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert (found["x"] == np.ones((2, 3))).all()
        assert found["x"].dtype == np.float16


def test_a_failure_leaves_the_old_file(tmp_path):
    write_rows(tmp_path / "t.npz", [{"x": np.zeros(2)}])

    def parts():
        yield {"x": np.ones(2)}
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_rows(tmp_path / "t.npz", parts())
    assert (read_rows(tmp_path / "t.npz")[0]["x"] == 0).all()
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


@pytest.mark.parametrize("name", ["t.npz", "t.parquet"])
def test_a_damaged_file_is_refused_in_one_sentence(name, tmp_path):
    write_rows(tmp_path / name, [{"x": np.zeros(50)}])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(UserError, match="write it again"):
        read_rows(tmp_path / name)


def test_ragged_and_empty_fields_are_refused(tmp_path):
    for column, message in (([[1.0, 2.0], [3.0]], "lists of different lengths"), ([[1.0, None]] * 2, "empty fields")):
        pq.write_table(pa.table({"probs": column}), tmp_path / "t.parquet")
        with pytest.raises(UserError, match=f"{message} in column 'probs'"):
            read_rows(tmp_path / "t.parquet")


def test_other_files_and_missing_packages_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"ends in \.npz or \.parquet, got .*t\.csv"):
        write_rows(tmp_path / "t.csv", [])
    with pytest.raises(UserError, match="There is no file"):
        read_rows(tmp_path / "t.npz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'noisylightning\[parquet\]'"):
        read_rows(tmp_path / "t.parquet")
