"""What `noisylightning predict` leaves, and gathering, on one process and on two for real, over gloo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from toy import ToyData, classifier, trainer

from noisylightning.estimators.standalone import estimate_with_trainer
from noisylightning.predictions import Predictions, PredictionWriter, gather
from noisylightning.predictions.files import read_rows

SCRIPT = Path(__file__).parent / "distributed_predict.py"


class NamedData(ToyData):
    """Its classes have names, and its samples are read in an order of their own."""

    class_names = ("ant", "bee", "cat")

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=10)


def expected_probs(num: int = 96) -> np.ndarray:
    with torch.no_grad():
        return classifier().eval()(ToyData(num_train=num).train.tensors[0]).softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_a_file_says_of_each_sample_which_class_it_is(tmp_path):
    run = trainer(tmp_path, [PredictionWriter(tmp_path / "p.npz"), PredictionWriter(tmp_path / "p.parquet")])
    run.predict(classifier(), NamedData())
    labels, probs = ToyData().train.tensors[1].numpy(), expected_probs()
    names = np.array(NamedData.class_names)
    arrays, class_names = read_rows(tmp_path / "p.npz")
    assert class_names == list(names)
    assert arrays.keys() == {"index", "label", "predicted", "clean_probs"}
    assert (arrays["index"] == np.arange(96)).all()
    assert (arrays["label"] == names[labels]).all()
    assert (arrays["predicted"] == names[probs.argmax(axis=1)]).all()
    np.testing.assert_allclose(arrays["clean_probs"], probs, atol=1e-6)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["index", "label", "predicted", "p(ant)", "p(bee)", "p(cat)"]
    assert table["label"].to_pylist() == arrays["label"].tolist()
    assert (table["p(bee)"].to_numpy() == arrays["clean_probs"][:, 1]).all()


@pytest.mark.parametrize("installed", [True, False])
def test_the_file_is_in_the_folder_of_the_run_and_its_place_is_said(installed, tmp_path, monkeypatch, caplog):
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    writer = PredictionWriter()
    run = trainer(tmp_path, [writer])
    with caplog.at_level("INFO"):
        run.predict(classifier(), ToyData(), return_predictions=False)
    assert writer.path == tmp_path / "lightning_logs" / "version_0" / (
        "predictions.parquet" if installed else "predictions.npz"
    )
    assert writer.path.exists()
    assert f"Predictions saved as {writer.path}." in caplog.text
    assert len(read_rows(writer.path)[0]["index"]) == 48


def test_samples_without_labels_are_predicted_too(tmp_path):
    class Bare(ToyData):
        def predict_dataloader(self):
            return DataLoader(self.train.tensors[0], batch_size=10)

    class Partly(ToyData):
        def predict_dataloader(self):
            inputs, labels = self.train.tensors
            return DataLoader(
                list(zip(inputs, labels.masked_fill(labels == 0, -1).tolist(), strict=True)), batch_size=10
            )

    run = trainer(tmp_path, [PredictionWriter(tmp_path / "p.npz")])
    run.predict(classifier(), Bare())
    assert read_rows(tmp_path / "p.npz")[0].keys() == {"index", "predicted", "clean_probs"}
    run.predict(classifier(), Partly())
    assert set(read_rows(tmp_path / "p.npz")[0]["label"]) == {"", "1", "2"}


@pytest.mark.parametrize(
    ("predict_step", "message"),
    [
        (lambda batch, batch_idx: [1.0], r"predict_step returns, .* but it returned a list"),
        (lambda batch, batch_idx: torch.zeros(3), r"returned a Tensor of shape \(3,\)"),
        (lambda batch, batch_idx: torch.zeros(3, 3), "cannot tell which samples 3 predictions belong to"),
        (lambda batch, batch_idx: torch.zeros(len(batch[0]), 2), "predicts 2 classes, but the data has 3 class_names"),
    ],
)
def test_what_cannot_be_written_is_refused(predict_step, message, tmp_path):
    model = classifier()
    model.predict_step = predict_step
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(tmp_path, [PredictionWriter(tmp_path / "p.npz")]).predict(model, NamedData())
    assert not (tmp_path / "p.npz").exists()


def test_other_files_and_several_loaders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.npz or \.parquet"):
        PredictionWriter("p.csv")
    model, loaders = classifier(), [ToyData().predict_dataloader()] * 2
    model.predict_step = lambda batch, batch_idx, dataloader_idx=0: torch.zeros(len(batch[0]), 3)
    with pytest.raises(ValueError, match="predictions of one loader, but there are 2"):
        trainer(tmp_path, [PredictionWriter(tmp_path / "p.npz")]).predict(model, loaders)


@pytest.mark.parametrize("name", ["p.npz", "p.parquet"])
def test_two_processes_write_each_sample_once(finished, name):
    """97 samples: a sampler that pads would write 98."""
    arrays, _ = read_rows(finished[0] / name)
    assert (arrays["index"] == np.arange(97)).all()
    probs = arrays["clean_probs"] if name == "p.npz" else np.stack([arrays[f"p({i})"] for i in range(3)], axis=1)
    np.testing.assert_allclose(probs, expected_probs(97), atol=1e-6)
    assert (arrays["label"].astype(int) == ToyData(num_train=97).train.tensors[1].numpy()).all()


def test_two_processes_estimate_what_one_does(finished, tmp_path):
    run = trainer(tmp_path)
    expected = estimate_with_trainer(run, classifier(), ToyData(num_train=97), None, tmp_path / "T.npy")
    for rank in finished[1]:
        torch.testing.assert_close(rank["transition"], expected, atol=1e-6, rtol=0)
    assert torch.equal(finished[1][0]["transition"], finished[1][1]["transition"])


def test_uneven_shares_are_gathered_in_order_on_every_process(finished):
    index = torch.tensor([0, 2, 3, 4, 5, 6])
    for rank in finished[1]:
        assert torch.equal(rank["index"], index)
        assert rank["sizes"].tolist() == [4, 2]
        assert torch.equal(rank["logits"], index[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        assert torch.equal(rank["noisy_labels"], index % 3)
        assert torch.equal(rank["held_out"], index > 3)
        assert torch.equal(rank["features"], index[:, None].half())


def test_one_process_gathers_in_order_too():
    share = Predictions(torch.arange(8.0).reshape(4, 2), torch.tensor([0, 1, 1, 0]), index=torch.tensor([5, 2, 9, 2]))
    whole = Predictions.concatenate(gather(share, size=2))
    assert whole.index.tolist() == [2, 5, 9]
    assert whole.logits[:, 0].tolist() == [2.0, 0.0, 4.0]
    with pytest.raises(ValueError, match="index is unknown"):
        list(gather(Predictions(torch.zeros(1, 2), torch.tensor([0]), index=torch.tensor([-1]))))
