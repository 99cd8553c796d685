"""The command compare."""

import json

import pytest

from noisylightning.cli import main


@pytest.fixture
def runs(tmp_path):
    """Two runs."""
    for number, score in enumerate((0.6, 0.7)):
        folder = tmp_path / "logs" / f"version_{number}"
        folder.mkdir(parents=True)
        row = {"phase": "correction", "selected_by": "last", "epoch": 1, "correction": None, "loss": "CrossEntropy"}
        (folder / "summary.json").write_text(json.dumps([{**row, "val_accuracy": score, "test_accuracy": 0.4321}]))
    return tmp_path / "logs"


def test_it_shows_and_writes(runs, tmp_path, capsys):
    main(["compare", str(runs), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.index("version_1") < said.index("version_0")
    assert "43.21" not in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.csv", "compare.png"}
    main(["compare", str(runs), "--test"])
    assert "43.21" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: RUN; noisylightning compare --help explains it"),
        (["RUNS", "--tset"], "unrecognized arguments: --tset"),
        (["RUNS", "--by", "test_accuracy"], "runs are chosen without clean labels"),
        (["RUNS", "--by", "clean_accuracy"], "none of the 2 runs has clean_accuracy"),
        (["nowhere"], "there is no nowhere"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(arguments, sentence, runs):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *(str(runs) if argument == "RUNS" else argument for argument in arguments)])
    assert str(stopped.value).startswith("noisylightning: ")
    assert sentence in str(stopped.value)
    assert len(str(stopped.value).splitlines()) == 1


def test_a_misspelt_command_is_answered_with_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["noisylightning"])
    with pytest.raises(SystemExit, match="did you mean compare"):
        main(["compar", "RUN"])
