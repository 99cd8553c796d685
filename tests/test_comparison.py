"""Runs beside each other, of summaries and configurations written by hand."""

import csv
import json
import statistics

import pytest
import yaml

from noisylightning.comparison import (
    compare_runs,
    differing_options,
    draw_comparison,
    print_comparison,
    read_runs,
    run_names,
    write_comparison,
)


def result(phase="correction", selected_by="last", val_accuracy=0.7, correction="ForwardCorrection", **more):
    known = {"epoch": 3, "loss": "CrossEntropy", "test_accuracy": 0.9, "test_balanced_accuracy": 0.8}
    return {"phase": phase, "selected_by": selected_by, "correction": correction, "val_accuracy": val_accuracy,
            "transition_error": None, **known, **more}  # fmt: skip


def config(seed=0, correction="ForwardCorrection", **options):
    return {
        "seed_everything": seed,
        "data": {"class_path": "noisylightning.data.DigitsDataModule", "init_args": options.pop("data", {})},
        "model": {
            "class_path": "noisylightning.NoisyLabelClassifier",
            "init_args": {"correction": {"class_path": f"noisylightning.{correction}", "init_args": {"loss": None}}},
        },
        "trainer": {"max_epochs": 5, "callbacks": None, "default_root_dir": str(seed), **options},
    }


@pytest.fixture
def write(tmp_path):
    """Writes a run."""

    def write(name, results, configuration=None):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(results if isinstance(results, str) else json.dumps(results))
        if configuration is not None:
            text = configuration if isinstance(configuration, str) else yaml.safe_dump(configuration)
            (folder / "config.yaml").write_text(text)
        return folder

    return write


def named(rows):
    return [(name, row.runs[0][1].selected_by) for name, row in zip(run_names(rows), rows, strict=True)]


def test_runs_are_found_by_folder_by_file_and_below_a_folder(write, tmp_path):
    for name in ("logs/version_0", "logs/version_9", "logs/version_10", "other"):
        write(name, [result()])
    runs = read_runs([tmp_path / "other", tmp_path / "logs"])
    assert [run.folder.name for run in runs] == ["other", "version_0", "version_9", "version_10"]
    (run,) = read_runs([str(tmp_path / "other" / "summary.json")])
    assert run.folder == tmp_path / "other"


def test_the_last_and_the_selected_weights_are_ordered_and_stage_one_is_no_end(write, tmp_path):
    stage_one = result("noisy labels", "val_loss", 0.99, None)
    write("a", [stage_one, result(val_accuracy=0.6), result(selected_by="val_accuracy", val_accuracy=0.8)])
    write("b", [result(val_accuracy=0.7)])
    rows = compare_runs(read_runs([tmp_path]))
    assert named(rows) == [("a", "val_accuracy"), ("b", "last"), ("a", "last")]


def test_the_clean_estimate_orders_otherwise_and_what_lacks_it_comes_last(write, tmp_path):
    write("a", [result(val_accuracy=0.9)])  # of a version that did not write it
    write("b", [result(val_accuracy=0.8, clean_accuracy=0.91, clean_accuracy_low=0.9, clean_accuracy_high=0.92)])
    write("c", [result(val_accuracy=0.7, clean_accuracy=0.95, clean_accuracy_low=None, clean_accuracy_high=None)])
    runs = read_runs([tmp_path])
    assert [name for name, _ in named(compare_runs(runs))] == ["a", "b", "c"]
    rows = compare_runs(runs, by="clean_accuracy")
    assert [name for name, _ in named(rows)] == ["c", "b", "a"]
    assert [row.interval for row in rows] == [None, (0.9, 0.92), None]


def test_test_accuracy_changes_no_order(write, tmp_path):
    for name, score, tested in (("a", 0.8, 0.1), ("b", 0.7, 0.9), ("c", 0.6, None)):
        write(name, [result(val_accuracy=score, test_accuracy=tested)])
    assert [name for name, _ in named(compare_runs(read_runs([tmp_path])))] == ["a", "b", "c"]


def test_runs_that_differ_in_seeds_alone_are_one_row(write, tmp_path, capsys):
    scores = (0.70, 0.74, 0.72)
    for seed, score in enumerate(scores):
        write(f"a{seed}", [result(val_accuracy=score)], config(seed, data={"noise_seed": seed, "batch_size": 8}))
    write("b", [result(val_accuracy=0.5)], config(0, "BackwardCorrection", data={"noise_seed": 0, "batch_size": 8}))
    rows = compare_runs(read_runs([tmp_path]))
    assert [len(row.runs) for row in rows] == [3, 1]
    assert rows[0].mean("val_accuracy") == pytest.approx(0.72)
    assert [row.options for row in rows] == [
        {"model.correction": "ForwardCorrection"},
        {"model.correction": "BackwardCorrection"},
    ]
    print_comparison(rows)
    assert f"72.00 ± {100 * statistics.stdev(scores):.2f}" in capsys.readouterr().out


def test_repetitions_and_runs_without_configuration_stand_alone(write, tmp_path):
    for name in ("same", "again"):  # one seed twice is no sample of two
        write(name, [result()], config(0))
    for name in ("bare", "bare_too"):
        write(name, [result()])
    assert [len(row.runs) for row in compare_runs(read_runs([tmp_path]))] == [1, 1, 1, 1]


def test_differences_are_named_where_classes_agree(write, tmp_path):
    """Arguments of a class that another run has not are no differences, the class is."""
    estimate = {"class_path": "noisylightning.EstimateTransitionCallback", "init_args": {"stage_one_epochs": 3}}
    stop = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}}
    write("a", [result()], config(callbacks=[estimate], data={"noise": None}))
    later = {**estimate, "init_args": {"stage_one_epochs": 4}}
    noise = {"class_path": "noisylightning.data.SymmetricNoise", "init_args": {"rate": 0.2}}
    write("b", [result()], config(callbacks=[later, stop], data={"noise": noise}))
    assert differing_options(read_runs([tmp_path])) == [
        "data.noise",
        "trainer.callbacks",
        "trainer.callbacks.EstimateTransitionCallback.stage_one_epochs",
    ]
    rows = compare_runs(read_runs([tmp_path]))
    assert [row.options["trainer.callbacks"] for row in rows] == ["-", "EarlyStopping"]  # beside what both have


def test_it_says_what_is_no_fair_comparison_and_what_it_leaves_out(write, tmp_path, capsys):
    write("a", [result()], config(data={"noise": "x", **{f"option{i}": 0 for i in range(5)}}))
    write("b", [result()], config(data={"noise": "y", **{f"option{i}": 1 for i in range(5)}}))
    print_comparison(compare_runs(read_runs([tmp_path])))
    said = capsys.readouterr().out
    assert "differ in 6 options, which --output writes to compare.csv" in said
    assert "Noisy accuracies compare on the same noisy labels alone, but the runs differ in data.noise" in said


@pytest.mark.parametrize("test", [False, True])
def test_clean_test_accuracy_is_shown_where_it_is_asked_for(test, write, tmp_path, capsys):
    write("a", [result(test_accuracy=0.4321)])
    rows = compare_runs(read_runs([tmp_path]))
    print_comparison(rows, test)
    write_comparison(rows, tmp_path / "out", test)
    assert ("43.21" in capsys.readouterr().out) == test
    assert ("0.4321" in (tmp_path / "out/compare.csv").read_text()) == test


def test_the_files_hold_every_run(write, tmp_path):
    for seed in range(2):
        estimate = {"clean_accuracy": 0.9, "clean_accuracy_low": 0.85, "clean_accuracy_high": 0.95}
        write(f"a{seed}", [result(**estimate)], config(seed))
    rows = compare_runs(read_runs([tmp_path]))
    write_comparison(rows, tmp_path / "out")
    with (tmp_path / "out/compare.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(line["row"], line["run"], line["seeds"]) for line in written] == [
        ("0", str(tmp_path / "a0"), "seed_everything=0"),
        ("0", str(tmp_path / "a1"), "seed_everything=1"),
    ]
    assert {(line["clean_accuracy_low"], line["clean_accuracy_high"]) for line in written} == {("0.85", "0.95")}
    assert (tmp_path / "out/compare.png").read_bytes().startswith(b"\x89PNG")
    figure = draw_comparison(rows, ["val_accuracy", "clean_accuracy"])
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "noisy validation accuracy, %",
        "clean accuracy, estimated, %",
    ]
    ends = [tuple(line.get_xdata()) for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    assert (85.0, 95.0) in ends


@pytest.mark.parametrize(
    ("results", "configuration", "sentence"),
    [
        ("{", None, "is no JSON"),
        ("{}", None, "is no summary of a fit"),
        ("[]", None, "is no summary of a fit"),
        ([{"weights": "correction, last", "val_accuracy": 0.5}], None, "has phase=None where a str is needed"),
        ([result(epoch="3")], None, "has epoch='3' where a int is needed"),
        ([result(val_accuracy="high")], None, "has val_accuracy='high', which is no number"),
        ([result(val_accuracy=float("nan"))], None, "has val_accuracy=nan, which is no number"),
        ([result()], "a: [", "config.yaml is no YAML"),
        ([result()], "- a", "config.yaml is no configuration of a run"),
        ([result(val_accuracy=None)], None, "none of the 1 runs has val_accuracy"),
    ],
)
def test_a_broken_run_is_refused_in_a_sentence(results, configuration, sentence, write, tmp_path):
    write("a", results, configuration)
    with pytest.raises(ValueError, match=sentence):
        compare_runs(read_runs([tmp_path / "a"]))


def test_no_run_and_the_same_run_twice_are_refused(write, tmp_path):
    folder = write("a", [result()])
    with pytest.raises(ValueError, match="is given twice, as"):
        read_runs([folder, tmp_path])
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no summary\.json in"):
        read_runs([tmp_path / "empty"])
    with pytest.raises(ValueError, match="none of the 1 runs has clean_accuracy"):
        compare_runs(read_runs([folder]), by="clean_accuracy")
    with pytest.raises(ValueError, match="got 'test_accuracy': runs are chosen without clean labels"):
        compare_runs(read_runs([folder]), by="test_accuracy")
