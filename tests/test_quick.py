"""The whole way, from data to the answer, as the command goes it."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noisylightning.quick
from noisylightning import AnchorEstimator, EstimateTransitionCallback
from noisylightning.cli import main
from noisylightning.cli.name_data import name_data
from noisylightning.data import ArrayDataModule, SymmetricNoise
from noisylightning.encoders import choose
from noisylightning.errors import BadValue
from noisylightning.quick import quick

pytestmark = pytest.mark.filterwarnings("ignore:No T-hat foretells", "ignore:T-hat contradicts")


@pytest.fixture(autouse=True)
def no_pretrained_encoder_and_little_training(monkeypatch):
    monkeypatch.setattr(choose, "FOR_IMAGES", ())
    monkeypatch.setattr(choose, "FOR_TEXTS", ())
    monkeypatch.setattr(noisylightning.quick, "AUDIT_FOLDS", 2)
    monkeypatch.setattr(noisylightning.quick, "RATES", (3e-2,))


def test_rows_of_numbers_are_features_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(600) % 3
    inputs = 4 * torch.eye(6)[clean] + torch.randn(600, 6, generator=generator)
    rows = ArrayDataModule((inputs, clean), noise=SymmetricNoise(0.3), batch_size=32)
    found = quick(rows, output=tmp_path, epochs=5)
    assert found.features is rows
    assert not (tmp_path / "features").exists()
    assert found.verdict.corrects
    clean = found.features.load_train()[1]
    wrong = clean[found.audit.table.index] != found.audit.table.noisy_labels
    assert found.audit.errors.total == pytest.approx(int(wrong.sum()), rel=0.2)
    assert found.results[-1].clean_accuracy > 0.7
    with pytest.raises(BadValue, match="features as they are: leave encoder"):
        quick(rows, "efficientnet_lite0", tmp_path)


def test_where_t_hat_is_the_identity_neighbours_rank_the_labels(tmp_path, caplog):
    caplog.set_level("INFO")
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(300) % 2
    inputs = 4 * torch.eye(4)[clean] + torch.randn(300, 4, generator=generator)
    labels = clean.clone()
    labels[:4] = 1 - labels[:4]  # too few to be sure of
    found = quick(ArrayDataModule((inputs, labels)), output=tmp_path, epochs=1)
    assert found.model.correction.known_transition().is_identity
    assert set(found.audit.table.index[:4].tolist()) == set(range(4))
    assert (tmp_path / "audit" / "audit.html").exists()
    assert "do not trust how many it says are wrong" in caplog.text


def test_neighbours_that_tell_nothing_leave_no_audit(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise BadValue("Features are constant.")

    caplog.set_level("INFO")
    monkeypatch.setattr(noisylightning.quick, "estimate_from_data", refuse)
    inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found = quick(ArrayDataModule((inputs, torch.arange(300) % 2)), output=tmp_path, epochs=1)
    assert found.audit is None
    assert not (tmp_path / "audit").exists()
    assert "so there is no audit. Features are constant." in caplog.text


def test_labels_that_neighbours_find_right_leave_no_audit(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(noisylightning.quick, "estimate_from_data", lambda *_: torch.eye(2))
    inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    assert quick(ArrayDataModule((inputs, torch.arange(300) % 2)), output=tmp_path, epochs=1).audit is None
    assert "no label is found to be wrong" in caplog.text


def test_a_table_of_texts_by_the_command(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    words = {"good": ["fine", "lovely", "bright"], "bad": ["dull", "poor", "grey"]}
    lines = []
    for i in range(200):
        name, other = ("good", "bad")[:: 1 if i % 2 else -1]
        text = " ".join(draw.choice(words[name], 4))
        lines.append(f"{text} {i},{other if draw.random() < 0.2 else name}")
    Path("texts.csv").write_text("\n".join(["text,label", *lines]))
    main(["quick", "--data.train_file", "texts.csv", "--epochs=2", "--output=first"])
    assert "features are words alone" in caplog.text
    manifest = json.loads(Path("first/features/manifest.json").read_text())
    assert manifest["parts"]["train"]["rows"] == 200
    (summary,) = Path("first").glob("lightning_logs/*/summary.json")
    assert json.loads(summary.read_text())


def test_a_folder_of_images_by_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at_once = partial(EstimateTransitionCallback, estimator=AnchorEstimator)  # so few images leave a doubt
    monkeypatch.setattr(noisylightning.quick, "EstimateTransitionCallback", at_once)
    draw = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        Path("photos", name).mkdir(parents=True)
        for i in range(60):
            other = (30, 30, 200) if colour[0] > 100 else (200, 30, 30)
            shade = np.array(other if i % 5 == 0 else colour) + draw.integers(-25, 25, (12, 12, 3))
            Image.fromarray(shade.astype(np.uint8)).save(f"photos/{name}/{i}.png")
    main(["quick", "--data.root=photos", "--epochs=6", "--output=answer"])
    page = Path("answer/audit/audit.html").read_text()
    assert "/9j/" in page  # how a JPEG begins in base64
    table = Path("answer/audit/audit.csv").read_text()
    assert "red/0.png" in table


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--data.root=photos"], "ImageFolderDataModule"),
        (["--data.train_file", "texts.csv"], "TextTableDataModule"),
        (["--data.train_file", "reviews.csv", "--data.text_column=review"], "TextTableDataModule"),
        (["--data.train_file=reviews.csv"], "TableDataModule"),
    ],
)
def test_the_data_is_named_by_its_arguments(given, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.csv").write_text("text,label\na fine film,good\n")
    Path("reviews.csv").write_text("review,label\na fine film,good\n")
    assert name_data(given) == [f"--data={named}", *given]


def test_named_data_is_left_alone_and_an_empty_table_refused(tmp_path):
    assert name_data(["--data=DigitsDataModule"]) == ["--data=DigitsDataModule"]
    assert name_data(["--epochs=3"]) == ["--epochs=3"]
    (tmp_path / "empty.csv").write_text("text,label\n")
    with pytest.raises(BadValue, match=r"empty.csv has no row: correct train_file"):
        name_data([f"--data.train_file={tmp_path / 'empty.csv'}"])


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--epochs=3"], "quick makes its own model of your data: give --data.root"),
     (["--data=DigitsDataModule", "--size=32"], "size and weights are those of an encoder")],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_sentence(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        main(["quick", *given])
