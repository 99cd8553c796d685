"""What was learnt from the training data travels with the checkpoint, by Lightning's own means and by the command."""

import json

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from noisylightning import NoisyLabelClassifier
from noisylightning.cli import main
from noisylightning.data import ArrayDataModule, ImageFolderDataModule, TableDataModule, TextTableDataModule
from noisylightning.data.checkpoint import complete_arguments, read_data_state
from noisylightning.models import MLP, EmbeddingClassifier

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(dirpath has changed|exists and is not empty|many workers|tensorboard)"
)


def trainer(folder, **kwargs):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, **settings | kwargs)


def fit(folder, network, data, epochs):
    model = NoisyLabelClassifier(network, num_classes=data.num_classes, optimizer=lambda p: torch.optim.Adam(p, 0.05))
    checkpoint = ModelCheckpoint(folder, filename="whole")
    trainer(folder, max_epochs=epochs, callbacks=[checkpoint]).fit(model, data)
    return model, folder / "whole.ckpt"


def write_table(path, shift, rows=60, labels=True, seed=0):
    """Two classes, told apart by a feature that lies elsewhere and spreads wider in a shifted table."""
    generator = np.random.default_rng(seed)
    lines = ["age,income,kind" if labels else "age,income"]
    for i in range(rows):
        x = (1 + shift) * (generator.normal() + (3 if i % 2 else -3)) + 20 * shift
        lines.append(f"{x},{generator.normal()}" + (f",{['no', 'yes'][i % 2]}" if labels else ""))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table, another whose numbers lie elsewhere, a test table, an unlabelled one, and a fit of the first."""
    folder = tmp_path_factory.mktemp("table")
    files = {
        "train": write_table(folder / "train.csv", 0),
        "other": write_table(folder / "other.csv", 3),
        "test": write_table(folder / "test.csv", 0, seed=1),
        "new": write_table(folder / "new.csv", 0, labels=False, seed=1),
    }
    data = TableDataModule(files["train"], files["test"], label_column="kind", batch_size=16)
    model, checkpoint = fit(folder, MLP(2, 2, hidden=[], dropout=0), data, 5)
    return {**files, "model": model, "checkpoint": checkpoint}


def score(table, data):
    (found,) = trainer(table["train"].parent).test(table["model"], data, ckpt_path=table["checkpoint"], verbose=False)
    return found["test_accuracy"]


def test_a_table_is_tested_by_the_scaling_of_its_checkpoint(table):
    own = score(table, TableDataModule(table["train"], table["test"], label_column="kind"))
    assert own > 0.95
    assert score(table, TableDataModule(table["other"], table["test"], label_column="kind")) == own
    known = {"feature_columns": ["age", "income"], "class_names": ["no", "yes"], "label_column": "kind"}
    assert score(table, TableDataModule(test_file=table["test"], **known)) == own
    data = TableDataModule.from_checkpoint(table["checkpoint"], test_file=table["test"], label_column="kind")
    assert (data.num_features, data.num_classes) == (2, 2)
    assert score(table, data) == own
    (found,) = trainer(table["train"].parent).test(table["model"], data, verbose=False)  # the weights at hand
    assert found["test_accuracy"] == own


def test_an_unlabelled_table_is_predicted(table):
    data = TableDataModule.from_checkpoint(table["checkpoint"], predict_file=table["new"], label_column="kind")
    found = trainer(table["train"].parent).predict(table["model"], data, ckpt_path=table["checkpoint"])
    assert (torch.cat(found).argmax(dim=1) == torch.arange(60) % 2).float().mean() > 0.95
    assert all(batch[1].eq(-1).all() for batch in data.predict_dataloader())
    partly = table["new"].with_name("partly.csv")
    partly.write_text("kind,age,income\nyes,1,2\n,1,2\n")
    data = TableDataModule.from_checkpoint(table["checkpoint"], predict_file=partly, label_column="kind")
    data.setup("predict")
    assert next(iter(data.predict_dataloader()))[1].tolist() == [1, -1]


def test_a_fit_is_not_resumed_with_another_table(table):
    data = TableDataModule(table["other"], label_column="kind")
    with pytest.raises(ValueError, match=r"another training table than .*other\.csv, .* set train_file") as caught:
        trainer(table["train"].parent, max_epochs=9).fit(table["model"], data, ckpt_path=table["checkpoint"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "theirs"), [("class_names", ["yes", "no"]), ("feature_columns", ["income", "age"])]
)
def test_other_classes_or_columns_are_refused(table, argument, theirs):
    data = TableDataModule(table["train"], table["test"], label_column="kind", **{argument: theirs})
    with pytest.raises(ValueError, match=rf"but TableDataModule has {', '.join(theirs)}: set {argument} \(--data\."):
        score(table, data)


def test_without_training_table_and_checkpoint_one_sentence_says_so(table):
    with pytest.raises(ValueError, match=r"no training table: set train_file \(--data\.train_file\)"):
        TableDataModule(test_file=table["test"])
    data = TableDataModule(
        test_file=table["test"], feature_columns=["age"], class_names=["no", "yes"], label_column="kind"
    )
    data.setup("test")
    with pytest.raises(ValueError, match="no training table: set train_file"):
        data.test_dataloader()


def test_the_state_loads_without_running_code_and_a_wrong_file_is_named(table, tmp_path):
    state = read_data_state(table["checkpoint"], "TableDataModule")
    assert state["arguments"] == {"feature_columns": ["age", "income"], "class_names": ["no", "yes"]}
    assert state["mean"].shape == state["std"].shape == (2,)
    with pytest.raises(ValueError, match="was made without a TextTableDataModule"):
        TextTableDataModule.from_checkpoint(table["checkpoint"])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint nowhere\.ckpt; correct ckpt_path"):
        read_data_state("nowhere.ckpt", "TableDataModule")
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.ckpt cannot be read as a checkpoint"):
        read_data_state(tmp_path / "broken.ckpt", "TableDataModule")


def test_arguments_left_out_are_completed_and_those_given_kept(table):
    arguments = {"class_names": None, "feature_columns": ["age"], "label_column": None}
    complete_arguments("noisylightning.data.TableDataModule", arguments, table["checkpoint"])
    assert arguments == {"class_names": ["no", "yes"], "feature_columns": ["age"], "label_column": None}
    complete_arguments("noisylightning.data.DigitsDataModule", arguments, table["checkpoint"])
    assert arguments["feature_columns"] == ["age"]


def test_texts_are_tested_and_predicted_by_the_vocabulary_of_the_checkpoint(tmp_path):
    pytest.importorskip("tokenizers")
    from noisylightning.data import TextEncoder

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    words = {"pos": "good fine", "neg": "bad awful"}
    rows = [{"text": f"{words[label]} film {i}", "label": label} for i in range(20) for label in words]
    train, test = write("train.jsonl", rows), write("test.jsonl", rows[:6])
    other = write("other.jsonl", [{"text": f"zebra {row['text']}", "label": row["label"]} for row in rows] * 2)
    new = write("new.jsonl", [{"text": row["text"]} for row in rows[:6]])

    def encoder():
        return TextEncoder(length=6, vocab_size=50)

    data = TextTableDataModule(train, test, encoder=encoder(), batch_size=8)
    network = EmbeddingClassifier(data.vocab_size, 2, length=6, embedding_dim=4, dropout=0.0)
    model, checkpoint = fit(tmp_path, network, data, 8)
    for again in (
        TextTableDataModule(other, test, encoder=encoder()),
        TextTableDataModule(test_file=test, class_names=["neg", "pos"], encoder=encoder()),
        TextTableDataModule.from_checkpoint(checkpoint, test_file=test, encoder=encoder()),
    ):
        (found,) = trainer(tmp_path).test(model, again, ckpt_path=checkpoint, verbose=False)
        assert found["test_accuracy"] == 1
        assert again.encoder.words() == data.encoder.words()
    again = TextTableDataModule.from_checkpoint(checkpoint, predict_file=new, encoder=encoder())
    found = trainer(tmp_path).predict(model, again, ckpt_path=checkpoint)
    assert torch.cat(found).argmax(dim=1).tolist() == [1, 0] * 3
    again = TextTableDataModule(other, test, encoder=encoder())
    with pytest.raises(ValueError, match="another vocabulary"):
        trainer(tmp_path, max_epochs=20).fit(model, again, ckpt_path=checkpoint)
    with pytest.raises(ValueError, match=r"no table of texts to train: set train_file \(--data\.train_file\)"):
        TextTableDataModule(test_file=test)


def test_class_names_of_other_modules_are_checked(tmp_path):
    data = ArrayDataModule(np.zeros((4, 2)), ["cat", "dog", "cat", "dog"])
    state = data.state_dict()
    ArrayDataModule(np.zeros((4, 2)), ["cat", "dog", "cat", "dog"]).load_state_dict(state)
    other = ArrayDataModule(np.zeros((4, 2)), ["cat", "owl", "cat", "dog"])
    with pytest.raises(ValueError, match="made with the class_names cat, dog, but ArrayDataModule has cat, dog, owl"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"no folder of training images: set root \(--data\.root\)"):
        ImageFolderDataModule(predict_root=tmp_path)


def test_the_command_tests_and_predicts_without_the_training_table(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["noisylightning"])
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1},
        "data": {
            "class_path": "TableDataModule",
            "init_args": {"train_file": str(table["train"]), "label_column": "kind", "batch_size": 16},
        },
        "model": {
            "class_path": "NoisyLabelClassifier",
            "init_args": {
                "backbone": {"class_path": "noisylightning.models.MLP", "init_args": {"in_features": 2, "hidden": []}}
            },
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config=run.yaml", f"--data.test_file={table['test']}"])
    (checkpoint,) = tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt")
    capsys.readouterr()
    tested = []
    for training in (table["train"], table["other"], tmp_path / "absent.csv"):
        arguments = [f"--ckpt_path={checkpoint}", f"--data.test_file={table['test']}", f"--data.train_file={training}"]
        main(["test", "--config=run.yaml", *arguments])
        tested.append([line for line in capsys.readouterr().out.splitlines() if "test_" in line])
    assert tested[0] == tested[1] == tested[2] != []
    main(["predict", "--config=run.yaml", f"--ckpt_path={checkpoint}", f"--data.predict_file={table['new']}",
          "--data.train_file=null"])  # fmt: skip
