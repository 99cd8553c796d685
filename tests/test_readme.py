"""What the README shows, run as it stands."""

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


@pytest.mark.parametrize("name", ["mnist", "imdb"])
def test_its_figures_are_those_of_the_results(name):
    table = (README.parent / "benchmarks" / "results" / f"{name}.md").read_text().strip()
    assert table in README.read_text()
