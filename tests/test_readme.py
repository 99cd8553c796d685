"""What the README shows, run as it stands."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
from toy import ForeignClassifier, ToyData

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_examples_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = types.ModuleType("theirs")
    theirs.TheirClassifier, theirs.TheirData = ForeignClassifier, ToyData
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["callback"].stage == 2


def test_files_it_names_exist():
    text = README.read_text()
    for name in [*re.findall(r"(?:configs|benchmarks|docs)/[\w./-]+\.\w+", text), "CONTRIBUTING.md", "CHANGELOG.md"]:
        assert (README.parent / name).exists(), name


@pytest.mark.parametrize("name", ["transition_default", "mnist", "imdb"])
def test_its_figures_are_those_of_the_results(name):
    table = (README.parent / "benchmarks" / "results" / f"{name}.md").read_text().strip()
    assert table in README.read_text()


def test_its_cost_of_a_corrected_loss_is_that_of_the_results():
    results = json.loads((README.parent / "benchmarks" / "results" / "losses.json").read_text())
    assert results["environment"]["fused_kernel"]
    rows = [
        row for row in results["rows"] if (row["formula"], row["dtype"], row["device"]) == ("forward", "float32", "cpu")
    ]
    times, memory = [row["time_ratio"] for row in rows], [row["memory_ratio"] for row in rows]
    assert {row["classes"] for row in rows} == {10, 100, 1000, 10_000}
    sentence = f"takes {min(times):.2f} to {max(times):.2f} of cross-entropy's time"
    assert sentence in README.read_text()
    assert f"at most {max(memory):.2f} of its memory" in README.read_text()
