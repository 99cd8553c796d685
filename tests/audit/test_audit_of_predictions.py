"""An audit of predictions: its table, its files, what it refuses; and cleanlab beside it."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

from noisylightning.audit import (
    AuditTable,
    audit_predictions,
    of_predictions,
    print_audit,
    write_audit,
    write_marks,
    write_table,
)
from noisylightning.data import ArrayDataModule, Relabel
from noisylightning.functional import audit_labels
from noisylightning.predictions import Predictions
from noisylightning.transition import GroupedTransition, symmetric

T = symmetric(4, 0.3, dtype=torch.float64)


def problem(num=300, seed=0, **others):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, 4, generator=generator, dtype=torch.float64)
    clean = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    noisy = torch.multinomial(T[clean], 1, generator=generator).flatten()
    return Predictions(logits, noisy, **others), clean


def test_the_table_is_in_the_order_of_index_in_any_batches(monkeypatch):
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    predictions, _ = problem()
    found = audit_predictions(predictions, T, samples=[f"{i}.png" for i in range(300)])
    monkeypatch.setattr(of_predictions, "_ENTRIES", 40)
    again = audit_predictions(predictions.select(order), T, samples=[f"{i}.png" for i in order.tolist()])
    expected = audit_labels(predictions.logits, predictions.noisy_labels, T)
    for audit in (found, again):
        assert torch.equal(audit.table.index, torch.arange(300))
        assert torch.equal(audit.table.wrong, expected.wrong)
        assert torch.equal(audit.table.labels, expected.labels)
        assert audit.table.samples[7] == "7.png"
        assert audit.errors.total == found.errors.total
    assert found.errors.total == pytest.approx(float(expected.wrong.sum()), abs=1e-6)
    assert found.table.wrong[found.table.ranked].diff().max() <= 0


def test_it_finds_the_wrong_labels_better_than_the_network_alone():
    from sklearn.metrics import average_precision_score

    predictions, clean = problem(3000)
    wrong = (clean != predictions.noisy_labels).numpy()
    found = audit_predictions(predictions, T).table.wrong.numpy()
    assert found[wrong].mean() > 0.7 > 0.2 > found[~wrong].mean()
    assert average_precision_score(wrong, found) > 0.8
    for low in (0, 0.2, 0.4, 0.6, 0.8):  # calibrated
        high = low + 0.2
        chosen = (found >= low) & (found <= high)
        assert wrong[chosen].mean() == pytest.approx(found[chosen].mean(), abs=0.1)


def test_noisy_posteriors_must_be_held_out_and_say_the_same():
    predictions, _ = problem()
    held_out = torch.ones(300, dtype=torch.bool)
    noisy = Predictions.from_probs(predictions.probs @ T, predictions.noisy_labels, held_out=held_out)
    found = audit_predictions(noisy, T, probs_of="noisy")
    torch.testing.assert_close(found.table.wrong, audit_predictions(predictions, T).table.wrong, atol=1e-5, rtol=0)
    assert found.held_out
    held_out[3] = False
    seen = Predictions.from_probs(predictions.probs @ T, predictions.noisy_labels, held_out=held_out)
    with pytest.raises(ValueError, match=r"1 of 300 predictions are p\(noisy \| x\) of samples that the network was"):
        audit_predictions(seen, T, probs_of="noisy")


def test_held_out_predictions_tell_how_often_the_networks_are_right(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(of_predictions, "_ENTRIES", 100)  # several batches
    predictions, clean = problem(4000, held_out=torch.ones(4000, dtype=torch.bool))
    found = audit_predictions(predictions, T)
    low, high = found.clean_accuracy.interval()
    right = (predictions.logits.argmax(dim=1) == clean).double().mean()
    assert low < right < high
    assert high - low < 0.1
    wider = audit_predictions(predictions, T, standard_error=torch.full((4, 4), 0.05))
    assert wider.clean_accuracy.standard_error > found.clean_accuracy.standard_error
    write_audit(found, tmp_path)
    saved = json.loads((tmp_path / "audit.json").read_text())["clean_accuracy"]
    assert saved == {"value": float(found.clean_accuracy.value), "low": float(low), "high": float(high)}
    print_audit(found)
    assert f"right on {100 * float(found.clean_accuracy.value):.1f} %" in " ".join(capsys.readouterr().out.split())


def test_no_accuracy_where_none_follows():
    held_out = torch.ones(300, dtype=torch.bool)
    predictions, _ = problem()
    assert audit_predictions(predictions, T).clean_accuracy is None  # the network knows these labels
    predictions, _ = problem(held_out=held_out)
    assert audit_predictions(predictions, torch.full((4, 4), 0.25)).clean_accuracy is None  # singular
    grouped = GroupedTransition(torch.stack([T, T]), torch.arange(300) % 2)
    assert audit_predictions(predictions, grouped).clean_accuracy is None  # of the sample


def test_each_sample_may_have_a_transition_of_its_own():
    predictions, _ = problem(6)
    groups = torch.tensor([0, 1, 0, 1, 1, 0])
    grouped = GroupedTransition(torch.stack([T, symmetric(4, 0.6, dtype=torch.float64)]), groups)
    found = audit_predictions(predictions, grouped).table.wrong
    second = audit_predictions(predictions, symmetric(4, 0.6, dtype=torch.float64)).table.wrong
    assert torch.equal(found[groups == 1], second[groups == 1])
    assert not torch.equal(found[groups == 0], second[groups == 0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"index": torch.tensor([0, 1, 1])}, "sample with index 1 comes twice"),
        ({"index": torch.tensor([0, 1, -1])}, "place of a sample in the training data is unknown"),
        ({"noisy_labels": torch.zeros(3, 2, dtype=torch.long)}, "2 annotators' labels"),
        (
            {"noisy_labels": torch.tensor([0, 1, -1]), "clean_labels": torch.tensor([0, 1, 1])},
            r"sample in row 2 has no noisy label \(-1\)",
        ),
    ],
)
def test_samples_that_cannot_be_audited_are_named(fault, message):
    fields = {"logits": torch.zeros(3, 4), "noisy_labels": torch.tensor([0, 1, 2])} | fault
    with pytest.raises(ValueError, match=message):
        audit_predictions(Predictions(**fields), T)


def test_other_bad_input_is_answered_in_one_sentence():
    predictions, _ = problem(3)
    with pytest.raises(ValueError, match="T is for 3 classes but 4 are expected"):
        audit_predictions(predictions, torch.eye(3))
    with pytest.raises(ValueError, match="probs_of must be 'clean' or 'noisy', got 'both'"):
        audit_predictions(predictions, T, probs_of="both")
    with pytest.raises(ValueError, match="2 samples' names and 3 predictions"):
        audit_predictions(predictions, T, samples=["a", "b"])
    with pytest.raises(ValueError, match="no prediction to audit"):
        audit_predictions(predictions.select(slice(0, 0)), T)
    near_singular = 0.25 + 1e-9 * (4 * torch.eye(4, dtype=torch.float64) - 1)
    held_out = Predictions(torch.zeros(3, 4), torch.zeros(3).long(), held_out=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="condition number"):
        audit_predictions(held_out, near_singular, probs_of="noisy")


def test_a_table_is_checked():
    good = {
        "index": torch.tensor([0, 2]),
        "noisy_labels": torch.tensor([0, 1]),
        "wrong": torch.tensor([0.1, 0.9]).double(),
        "labels": torch.tensor([0, 0]),
        "label_probs": torch.tensor([0.9, 0.9]).double(),
        "class_names": ("a", "b"),
    }
    AuditTable(**good)
    for change, message in (
        ({"index": torch.tensor([2, 0])}, "ascending"),
        ({"index": torch.tensor([2, 2])}, "none twice"),
        ({"labels": torch.tensor([0, 2])}, "labels holds 2 but there are 2 classes"),
        ({"wrong": torch.tensor([0.1, 1.1]).double()}, "wrong must be probabilities"),
        ({"wrong": torch.tensor([0.1, 0.9])}, "wrong must be torch.float64"),
        ({"labels": torch.tensor([0])}, r"labels must be of shape \(2,\)"),
        ({"samples": ("a",)}, "1 samples' names and 2 rows"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            AuditTable(**good | change)


def test_files_hold_the_table_and_the_totals(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    predictions, _ = problem(class_names=["cat", "dog", "=eel", 'f"ox,'])
    found = audit_predictions(predictions, T, samples=[f"<script>{i}</script>\n," for i in range(300)])
    write_audit(found, tmp_path / "audit")
    with (tmp_path / "audit/audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["wrong"]) for row in rows] == found.table.wrong[found.table.ranked].tolist()
    assert list(rows[0]) == ["index", "sample", "noisy_label", "wrong", "label", "label_prob", "noisy_name", "name"]
    for row in rows[:20]:
        place = int(row["index"])
        assert row["sample"] == f"<script>{place}</script>\n,"
        assert int(row["noisy_label"]) == int(predictions.noisy_labels[place])
        assert row["name"] == predictions.class_names[int(row["label"])]
    columns = pq.read_table(tmp_path / "audit/audit.parquet").to_pydict()
    assert columns["wrong"] == [float(row["wrong"]) for row in rows]
    assert columns["sample"] == [row["sample"] for row in rows]
    summary = json.loads((tmp_path / "audit/audit.json").read_text())
    assert summary["expected_wrong"] == found.errors.total
    assert summary["low"] < summary["expected_wrong"] < summary["high"]
    labels = predictions.noisy_labels.numpy().astype("<i8")
    assert summary["labels_checksum"] == hashlib.sha256(labels.tobytes()).hexdigest()
    expected = [pair["expected"] for pair in summary["pairs"]]
    assert expected == sorted(expected, reverse=True)
    assert sum(expected) == pytest.approx(found.errors.total)
    assert "not for errors of the network" in summary["interval_covers"]


def test_the_terminal_shows_ten_pairs(capsys):
    predictions, _ = problem(class_names=["[bold]", "b", "c", "d"])
    print_audit(audit_predictions(predictions, T))
    said = capsys.readouterr().out
    assert "of 300 labels are wrong" in said
    assert "[bold]" in said
    assert len(said.strip().splitlines()) - said[: said.index("──")].count("\n") - 1 == 10


def cleanlab_issues(module):
    """The audit's data, its table, and the issues that cleanlab finds in that."""
    filters = pytest.importorskip("cleanlab.filter")
    predictions, clean = problem(500)
    table = audit_predictions(predictions, T).table
    issues = filters.find_label_issues(
        table.noisy_labels.numpy(), table.soft_labels().numpy(), return_indices_ranked_by=module, n_jobs=1
    )
    return table, issues, clean


def test_cleanlab_takes_the_table_and_ranks_as_it_does():
    rank = pytest.importorskip("cleanlab.rank")
    table, issues, clean = cleanlab_issues("self_confidence")
    scores = rank.get_label_quality_scores(
        table.noisy_labels.numpy(), table.soft_labels().numpy(), adjust_pred_probs=False
    )
    np.testing.assert_allclose(scores, 1 - table.wrong.numpy(), atol=1e-12)
    assert len(issues) > 50
    assert (clean != table.noisy_labels)[torch.from_numpy(issues)].double().mean() > 0.6


@pytest.mark.parametrize("ranked", ["self_confidence", None])
def test_cleanlabs_issues_are_fed_back(ranked, tmp_path):
    table, issues, _ = cleanlab_issues(ranked)
    write_marks(table, issues, tmp_path / "drop.csv")
    data = ArrayDataModule(np.zeros((500, 1)), table.noisy_labels.numpy(), relabel=tmp_path / "drop.csv")
    data.setup("fit")
    found = set(np.flatnonzero(issues).tolist() if ranked is None else issues.tolist())
    assert not found & set(data.train_index.tolist())
    assert found == set(data.training_labels.dropped.tolist()) | (found & set(data.val_index.tolist()))
    write_marks(table, issues, tmp_path / "relabel.parquet", mark="relabel")
    data = ArrayDataModule(
        np.zeros((500, 1)), table.noisy_labels.numpy(), relabel=Relabel(tmp_path / "relabel.parquet")
    )
    data.setup("fit")
    changed = (data.training_labels.labels != table.noisy_labels).nonzero().flatten().tolist()
    assert set(changed) <= found


@pytest.mark.parametrize(
    ("issues", "mark", "message"),
    [
        ([0, 5], "drop", "no row 5 in a table of 3"),
        ([0, 0], "drop", "comes twice among the issues"),
        ([True, False], "drop", r"mask must be of shape \(3,\)"),
        ([0.5], "drop", "integers, or a mask, got torch.float64"),
        ([0], "delete", "marked 'drop' or 'relabel', got 'delete'"),
    ],
)
def test_issues_that_are_none_are_refused(issues, mark, message, tmp_path):
    table = AuditTable.from_probs(torch.full((3, 2), 0.5), torch.tensor([0, 1, 1]))
    with pytest.raises((ValueError, TypeError), match=message):
        write_marks(table, issues, tmp_path / "marks.csv", mark)
    write_marks(table, [], tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"goes into a .csv or .parquet file"):
        write_table(table, tmp_path / "audit.txt")
