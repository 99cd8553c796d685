"""Training on the labels that an audit has corrected."""

import csv
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule
from toy import adam, trainer

from noisylightning import NoisyLabelClassifier
from noisylightning.audit import AuditTable, write_marks, write_table
from noisylightning.data import ArrayDataModule, DigitsDataModule, ImageFolderDataModule, Relabel, SymmetricNoise
from noisylightning.models import MLP

X = torch.arange(40.0)[:, None]
Y = torch.arange(40) % 3


def table(labels=Y, seed=0) -> AuditTable:
    probs = torch.rand(len(labels), 3, generator=torch.Generator().manual_seed(seed)).double() ** 4
    return AuditTable.from_probs(probs / probs.sum(1, keepdim=True), labels)


def module(relabel, **kwargs) -> ArrayDataModule:
    data = ArrayDataModule(X, Y, relabel=relabel, batch_size=7, **kwargs)
    data.setup("fit")
    return data


def trained_on(data) -> dict[int, torch.Tensor]:
    """Label by sample of an epoch."""
    found = {}
    for inputs, labels in data.train_dataloader():
        found |= {int(x): label for x, label in zip(inputs[:, 0], labels, strict=True)}
    return found


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "given", [lambda path: path, lambda path: str(path), lambda path: Relabel(path, threshold=0.5)]
)
def test_probably_wrong_labels_become_the_most_probable_ones(given, suffix, tmp_path):
    audit = table()
    write_table(audit, tmp_path / f"audit.{suffix}")
    data, plain = module(given(tmp_path / f"audit.{suffix}")), module(None)
    expected = torch.where(audit.wrong >= 0.5, audit.labels, Y)
    found = trained_on(data)
    assert sorted(found) == plain.train_index.tolist()
    assert all(int(label) == int(expected[i]) for i, label in found.items())
    assert data.training_labels.changed == int((expected != Y)[data.train_index].sum()) > 0


def test_validation_and_estimation_keep_the_given_labels(tmp_path):
    write_table(table(), tmp_path / "audit.csv")
    data, plain = module(Relabel(tmp_path / "audit.csv", how="drop")), module(None)
    for loader in ("val_dataloader", "estimation_dataloader"):
        pairs = zip(getattr(data, loader)(), getattr(plain, loader)(), strict=True)
        assert all(torch.equal(a, b) for mine, others in pairs for a, b in zip(mine, others, strict=True))


def test_samples_are_dropped(tmp_path):
    audit = table()
    write_table(audit, tmp_path / "audit.csv")
    data = module(Relabel(tmp_path / "audit.csv", how="drop", threshold=0.8))
    kept = module(None).train_index
    kept = kept[audit.wrong[kept] < 0.8]
    assert data.train_index.tolist() == sorted(trained_on(data)) == kept.tolist()
    fold = [int(x) for inputs, _ in data.fold_dataloader(kept[:5]) for x in inputs[:, 0]]
    assert sorted(fold) == kept[:5].tolist()


def test_labels_become_soft(tmp_path):
    audit = table()
    write_table(audit, tmp_path / "audit.csv")
    found = trained_on(module(Relabel(tmp_path / "audit.csv", how="soft")))
    for i, label in found.items():
        assert float(label.sum()) == pytest.approx(1)
        assert float(label[Y[i]]) == pytest.approx(1 - float(audit.wrong[i]), abs=1e-6)
        assert float(label[audit.labels[i]]) == pytest.approx(float(audit.label_probs[i]), abs=1e-6)
    some = trained_on(module(Relabel(tmp_path / "audit.csv", how="soft", threshold=0.7)))
    assert all(float(label.max()) == 1 for i, label in some.items() if audit.wrong[i] < 0.7)


@pytest.mark.parametrize("how", ["relabel", "soft", "drop"])
def test_marks_decide_over_the_threshold(how, tmp_path):
    audit, marks = table(), [["keep", "relabel", "drop", ""][i % 4] for i in range(40)]
    write_table(audit, tmp_path / "marked.csv", marks)
    found = trained_on(module(Relabel(tmp_path / "marked.csv", how=how)))
    for i in module(None).train_index.tolist():
        if marks[i] == "drop" or (marks[i] == "" and how == "drop" and audit.wrong[i] >= 0.5):
            assert i not in found
        elif marks[i]:
            expected = Y[i] if marks[i] == "keep" else audit.labels[i]
            label = found[i]
            assert int(label.argmax() if label.is_floating_point() else label) == int(expected)
            assert not label.is_floating_point() or float(label.max()) == 1


def test_the_order_of_rows_does_not_matter(tmp_path):
    write_table(table(), tmp_path / "audit.csv")
    first, *rows = (tmp_path / "audit.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join([first, *reversed(rows)]))
    one, other = (module(tmp_path / name).training_labels for name in ("audit.csv", "other.csv"))
    assert one.checksum == other.checksum


def test_with_drawn_noise_the_audit_is_of_the_noisy_labels(tmp_path):
    data = module(None, noise=SymmetricNoise(0.4))
    write_table(table(data.noisy_labels.labels), tmp_path / "audit.csv")
    again = module(tmp_path / "audit.csv", noise=SymmetricNoise(0.4))
    assert again.training_labels.changed > 0
    with pytest.raises(ValueError, match="but in this data it is"):
        module(tmp_path / "audit.csv", noise=SymmetricNoise(0.4), noise_seed=1)


def changed(folder, change) -> Path:
    """An audit file with something changed."""
    write_table(table(), folder / "audit.csv")
    with (folder / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows
    with (folder / "audit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "audit.csv"


def setting(name, value):
    return lambda rows: rows[3].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("index", "7000"), "line 5, is on sample 7000, but there are 40 samples"),
        (setting("index", "-1"), "is on sample -1, but there are 40 samples"),
        (setting("index", "one"), "has 'one' for index, not a whole number"),
        (lambda rows: rows[:10], "has no row for sample .* others that train"),
        (lambda rows: [*rows, rows[5]], "which has a row already"),
        (lambda rows: rows[3].update(noisy_label=str((int(rows[3]["noisy_label"]) + 1) % 3)), "but in this data it is"),
        (setting("label", "3"), "has the label 3, but classes are 0 to 2"),
        (setting("label", "cat"), "has 'cat' for label, not a whole number"),
        (setting("wrong", "1.5"), "has '1.5' for wrong, not a probability"),
        (setting("wrong", "nan"), "has 'nan' for wrong, not a probability"),
        (setting("label_prob", ""), "has '' for label_prob, not a probability"),
        (lambda rows: [row | {"mark": "delete"} for row in rows], "has the mark 'delete', which is none of keep"),
        (lambda rows: [row | {"mark": "drop"} for row in rows], "leaves no sample to train on"),
        (lambda rows: [{k: v for k, v in row.items() if k != "wrong"} for row in rows], "has no column 'wrong'"),
    ],
)
def test_a_fault_in_the_file_is_answered_in_one_sentence(change, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        module(changed(tmp_path, change))
    assert "\n" not in str(caught.value)


def test_other_faults_are_answered_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.csv; set relabel"):
        module("absent.csv")
    with pytest.raises(ValueError, match="how must be one of 'relabel', 'drop', 'soft', got 'hard'"):
        Relabel("a.csv", how="hard")
    with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\], got 2"):
        Relabel("a.csv", threshold=2)
    with pytest.raises(ValueError, match="probabilities, which no audit corrects"):
        Relabel("a.csv").apply(torch.full((4, 2), 0.5), torch.arange(4), 2)


def test_other_samples_under_the_same_labels_are_noticed(tmp_path):
    from PIL import Image

    for name in "abcdefghij":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")

    def photos(names, relabel=None):
        rows = [f"{name}.png,{'cat' if i < 5 else 'dog'}" for i, name in enumerate(names)]
        (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]))
        data = ImageFolderDataModule(tmp_path, tmp_path / "labels.csv", size=8, relabel=relabel)
        data.setup("fit")
        return data

    data = photos("abcdefghij")
    assert data.sample_names()[:2] == ["a.png", "b.png"]
    labels = data.load_train()[1]
    probs = torch.full((10, 2), 0.5, dtype=torch.float64)
    write_table(AuditTable.from_probs(probs, labels, samples=tuple(data.sample_names())), tmp_path / "audit.csv")
    assert photos("abcdefghij", tmp_path / "audit.csv").training_labels is not None
    with pytest.raises(ValueError, match=r"says that sample . is '.\.png', but in this data it is '.\.png'"):
        photos("bacdefghij", tmp_path / "audit.csv")


@pytest.mark.parametrize("how", ["relabel", "soft", "drop"])
def test_a_fit_resumes_bit_for_bit_and_refuses_another_file(how, tmp_path):
    plain = DigitsDataModule(noise=SymmetricNoise(0.4))
    plain.setup("fit")
    noisy = plain.noisy_labels.labels
    generator = torch.Generator().manual_seed(0)
    audit = AuditTable.from_probs(torch.rand(len(noisy), 10, generator=generator).softmax(1).double(), noisy)
    write_table(audit, tmp_path / "audit.csv")

    def fit(epochs, ckpt_path=None):
        torch.manual_seed(0)
        model = NoisyLabelClassifier(MLP(64, 10), num_classes=10, optimizer=adam)
        data = DigitsDataModule(noise=SymmetricNoise(0.4), relabel=Relabel(tmp_path / "audit.csv", how, 0.9))
        run = trainer(tmp_path, [], epochs)
        run.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    whole = fit(2)
    fit(1)
    assert torch.equal(fit(2, tmp_path / "1.ckpt"), whole)
    write_marks(audit, list(range(100)), tmp_path / "audit.csv")
    with pytest.raises(ValueError, match="other training labels than relabel"):
        fit(2, tmp_path / "1.ckpt")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.relabel=a.csv"],
        ["--data.relabel.file=a.csv", "--data.relabel.how=drop", "--data.relabel.threshold=0.7"],
    ],
)
def test_it_is_named_on_the_command_line(arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    config = parser.parse_args(["--data=DigitsDataModule", *arguments])
    made = parser.instantiate_classes(config).data.relabel
    assert str(made.file) == "a.csv"
    assert (made.how, made.threshold) == (("relabel", None) if len(arguments) == 1 else ("drop", 0.7))
