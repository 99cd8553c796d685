"""What a fit has reached, as data, as a table, as files and in the loggers."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset
from toy import TRUE, Counted, ToyData, anchored, classifier, trainer

from noisylightning import (
    FineTuneOnTrusted,
    ForwardCorrection,
    KnownTransitionCallback,
    NoCorrection,
    results,
)
from noisylightning.results import Result, evaluate_fit, print_results, publish_results
from noisylightning.run_folder import run_folder


class Trusted(ToyData):
    def trusted_train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*(part[:16] for part in self.test.tensors)), batch_size=16)


def fitted(folder, callbacks=(), monitor="val_accuracy", mode="max", **settings):
    """A fit with dropout, so that a model left in training would show, and what selects its weights."""
    selected = [ModelCheckpoint(monitor=monitor, mode=mode)] if monitor else []
    correction = settings.pop("correction", None) or ForwardCorrection(num_classes=3)
    run = trainer(folder, [*callbacks, *selected], enable_checkpointing=bool(selected), **settings)
    model, data = classifier(dropout=0.3, correction=correction), Trusted()
    run.fit(model, data)
    return run, model, data


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """One fit in two stages with two loggers, measured and published."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [CSVLogger(folder, "csv"), TensorBoardLogger(folder, "events")]
    run, model, data = fitted(folder, [anchored(2)], logger=loggers, log_every_n_steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state(), dict(run.callback_metrics), run.global_step, run.state.fn
    found = evaluate_fit(run, model, data)
    publish_results(run, found)
    return run, model, data, found, before, state


def test_it_leaves_model_and_trainer_as_the_fit_left_them(two_stages):
    run, model, _, _, before, (random, metrics, step, fn) = two_stages
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(child.training for child in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert (run.callback_metrics, run.global_step, run.state.fn) == (metrics, step, fn)
    assert run.lightning_module is model
    assert not torch.equal(model.correction.transition, torch.eye(3))


def test_each_result_says_where_its_weights_come_from(two_stages):
    found = two_stages[3]
    assert [(result.phase, result.selected_by) for result in found] == [
        ("noisy labels", "val_loss"),
        ("correction", "last"),
        ("correction", "val_accuracy"),
    ]
    assert [result.correction for result in found] == [None, "ForwardCorrection", "ForwardCorrection"]
    assert {result.loss for result in found} == {"CrossEntropy"}
    assert found[0].epoch < 2 <= found[2].epoch <= found[1].epoch == 3
    assert found[0].transition_error is None
    error = (two_stages[1].correction.transition - TRUE).abs().sum() / TRUE.sum()
    assert found[1].transition_error == found[2].transition_error == pytest.approx(float(error), abs=1e-6)


def test_each_result_is_what_its_weights_reach(two_stages):
    """Stage one's weights go with T = identity, later ones with T-hat."""
    run, _, data, found, _, _ = two_stages
    stage_one = run.callbacks[0].stage_one_checkpoint
    paths = [stage_one, None, run.checkpoint_callback.best_model_path]
    for result, path in zip(found, paths, strict=True):
        model = classifier()
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"] if path else two_stages[4])
        measured = trainer("unused").validate(model, data, verbose=False)[0]
        measured |= trainer("unused").test(model, data, verbose=False)[0]
        for name in ("val_accuracy", "test_accuracy", "test_balanced_accuracy"):
            assert getattr(result, name) == measured[name], name
        if path != stage_one:
            assert result.clean_accuracy == measured["val_clean_accuracy"]
            assert result.clean_accuracy_high == measured["val_clean_accuracy_high"]


def test_each_set_of_weights_is_measured_once(tmp_path, monkeypatch):
    calls = []
    measure = results.measure
    monkeypatch.setattr(results, "measure", lambda *args: calls.append(1) or measure(*args))
    run, model, data = fitted(
        tmp_path, monitor="step", max_epochs=2, correction=ForwardCorrection(TRUE)
    )  # the last weights are the best, by its number
    last, best = evaluate_fit(run, model, data)
    assert calls == [1]
    assert dataclasses.replace(last, selected_by="step") == best


@pytest.mark.parametrize(
    ("callbacks", "correction", "expected"),
    [
        ((), NoCorrection(num_classes=3), [("noisy labels", None, False)]),
        ((KnownTransitionCallback(),), None, [("correction", "ForwardCorrection", True)]),
        (
            (anchored(1, estimate_from="last"), FineTuneOnTrusted(2)),
            None,
            [("noisy labels", None, False), ("trusted", "ForwardCorrection", True)],
        ),
    ],
)
def test_phases_are_told_apart(tmp_path, callbacks, correction, expected):
    run, model, data = fitted(tmp_path, callbacks, monitor=None, correction=correction, max_epochs=3)
    found = evaluate_fit(run, model, data)
    assert [(r.phase, r.correction, r.transition_error is not None) for r in found] == expected
    assert {result.selected_by for result in found} == {"last"}


def test_the_error_that_standard_errors_lead_one_to_expect_is_recorded(tmp_path):
    callback = anchored(1, estimator=partial(Counted, replicates=20))
    run, model, data = fitted(tmp_path, [callback], monitor=None, max_epochs=2)
    first, last = evaluate_fit(run, model, data)
    assert first.expected_transition_error is None
    expected = (2 / np.pi) ** 0.5 * callback.standard_error.numpy().sum() / 3
    assert last.expected_transition_error == pytest.approx(expected)
    model.correction.set_transition(TRUE)  # as one that learns on: it is not T-hat any more
    assert evaluate_fit(run, model, data)[-1].expected_transition_error is None


@pytest.mark.parametrize(
    ("transition", "sentence"),
    [
        (0.15 * torch.eye(3) + 0.85 / 3, "By T the accuracy on clean labels is .* so T is wrong, or noise"),
        (torch.full((3, 3), 1 / 3), "T is singular"),
        (0.002 * torch.eye(3) + 0.998 / 3, "T is nearly singular"),
    ],
)
def test_an_estimate_of_clean_accuracy_that_is_not_to_be_trusted_is_told(tmp_path, transition, sentence):
    run, model, data = fitted(tmp_path, monitor=None, max_epochs=2, correction=ForwardCorrection(TRUE))
    model.correction.set_transition(transition)
    with pytest.warns(UserWarning, match=sentence):
        (result,) = evaluate_fit(run, model, data)
    assert (result.clean_accuracy is None) == ("is singular" in sentence)


def test_a_fit_that_ends_in_stage_one_has_no_correction(tmp_path):
    with pytest.warns(UserWarning, match="T was not estimated"):
        run, model, data = fitted(tmp_path, [anchored(3)], monitor=None, max_steps=6)
    (result,) = evaluate_fit(run, model, data)
    assert (result.phase, result.correction, result.transition_error) == ("noisy labels", None, None)


# Telling


def test_logs_end_on_the_chosen_weights_score(two_stages):
    """Under the plain names; stage one's and the last weights' scores have names of their own."""
    run, _, _, (first, last, best), _, _ = two_stages
    expected = {
        "test_accuracy": best.test_accuracy,
        "test_balanced_accuracy": best.test_balanced_accuracy,
        "transition_error": best.transition_error,
        "noisy_labels_best/test_accuracy": first.test_accuracy,
        "correction_last/test_accuracy": last.test_accuracy,
        "correction_last/transition_error": last.transition_error,
    }
    comma_separated, events = run.loggers
    with Path(comma_separated.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    scalars = EventAccumulator(events.log_dir).Reload()
    for name, value in expected.items():
        assert [float(row[name]) for row in rows if row[name]] == pytest.approx([value]), name
        assert [event.value for event in scalars.Scalars(name)] == pytest.approx([value]), name
    assert "noisy_labels_best/transition_error" not in rows[0]


def test_summary_is_the_results_in_the_runs_folder(two_stages):
    run, _, _, found, _, _ = two_stages
    rows = json.loads((run_folder(run) / "summary.json").read_text())
    assert [Result(**row) for row in rows] == found


def test_the_last_line_says_where_things_are(tmp_path, capsys):
    run, model, data = fitted(tmp_path, [anchored(1)], max_epochs=2)
    publish_results(run, evaluate_fit(run, model, data))
    said = capsys.readouterr().out.splitlines()[-1]
    folder = run_folder(run)
    assert said == f"Left in {folder}: T-hat, summary.json; checkpoints are in {run.checkpoint_callback.dirpath}."
    assert {"transition.npy", "stage_one.ckpt", "summary.json"} <= {path.name for path in folder.iterdir()}


def table_of(*results, capsys):
    print_results(results)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.split() for line in lines]


def test_the_table_fits_80_columns_and_leaves_unknown_cells_open(capsys):
    known = Result("noisy labels", "val_accuracy", 7, "ForwardCorrection", "CrossEntropy", 0.5, 0.25, 0.2, 0.125)
    unknown = Result("trusted", "last", 119, None, "CrossEntropy", None, None, None, None)
    lines = table_of(known, unknown, capsys=capsys)
    assert lines[2] == ["noisy", "labels,", "best", "ForwardCorrection", "7", "50.00", "%", "25.00", "%", "0.1250"]
    assert lines[3] == ["trusted,", "last", "CrossEntropy", "119", "-", "-", "-"]


def test_the_table_has_the_accuracy_on_clean_labels_where_one_is_estimated(capsys):
    bounds = {"clean_accuracy": 0.9, "clean_accuracy_low": 0.8755, "clean_accuracy_high": 0.9245}
    known = Result(
        "noisy labels", "x", 117, "ImportanceReweighting", "CrossEntropy", 0.5, 0.25, 0.2, 0.125, None, **bounds
    )
    unknown = Result("trusted", "last", 119, None, "CrossEntropy", None, None, None, None)
    lines = table_of(known, unknown, capsys=capsys)
    assert lines[0] == ["noisy", "clean", "clean", "T"]
    assert lines[1] == ["weights", "loss", "epoch", "val", "est.", "test", "error"]
    assert lines[3][-6:] == ["50.00", "%", "90.0±2.4%", "25.00", "%", "0.1250"]
    assert lines[4] == ["trusted,", "last", "CrossEntropy", "119", "-", "-", "-", "-"]
