"""The estimation pass within a fit: what it takes, what it leaves."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from toy import CLASSES, Counted, Scripted, ToyData, anchored, classifier, trainer, weights

from noisylightning import (
    AnchorEstimator,
    BackwardCorrection,
)
from noisylightning.data import RandomCropFlip
from noisylightning.errors import BadValue
from noisylightning.phases import EstimationPhase
from noisylightning.predictions import Predictions
from noisylightning.transition import from_flips


def test_files_and_logger_get_the_estimate(tmp_path):
    callback = anchored(1)
    run = trainer(tmp_path, [callback], max_epochs=2, logger=TensorBoardLogger(tmp_path, "logs"))
    run.fit(classifier(), ToyData())
    folder = Path(run.log_dir)
    assert np.array_equal(np.load(folder / "transition.npy", allow_pickle=False), callback.transition.numpy())
    np.testing.assert_allclose(np.loadtxt(folder / "transition.csv", delimiter=","), callback.transition, atol=1e-7)
    assert (folder / "transition.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder)).Reload()
    assert "transition" in events.Tags()["images"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_standard_errors_are_kept_saved_and_resumed(tmp_path):
    callback = anchored(1, estimator=partial(Counted, replicates=20))
    assert callback.standard_error is None
    run = trainer(tmp_path, [callback, ModelCheckpoint(tmp_path / "all")], max_epochs=2, enable_checkpointing=True)
    model, data = classifier(), ToyData()
    run.fit(model, data)

    by_hand, inputs = Counted(CLASSES, replicates=20), data.train.tensors
    model.load_state_dict(torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"])
    by_hand.update(Predictions(model.eval()(inputs[0]), inputs[1]))
    assert torch.equal(callback.transition, by_hand.compute())
    assert torch.equal(callback.standard_error, by_hand.standard_error())
    saved = np.load(Path(callback.stage_one_checkpoint).with_name("transition_standard_error.npy"), allow_pickle=False)
    assert np.array_equal(saved, callback.standard_error.numpy())

    again = anchored(1, estimator=partial(Counted, replicates=20))
    last = run.checkpoint_callback.best_model_path
    resumed = trainer(tmp_path, [again, ModelCheckpoint(Path(last).parent)], max_epochs=3, enable_checkpointing=True)
    resumed.fit(model, data, ckpt_path=last, weights_only=True)
    assert torch.equal(again.standard_error, callback.standard_error)


def test_t_hat_is_not_lost_where_standard_errors_cannot_be_had(tmp_path):
    class Few(Counted):
        def _replicated(self):
            raise BadValue("A replicate has no sample of class 2.")

    callback = anchored(1, estimator=partial(Few, replicates=20))
    with pytest.warns(UserWarning, match="without standard errors. A replicate has no sample of class 2"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), ToyData())
    assert callback.standard_error is None
    assert callback.stage == 2


def test_without_replicates_there_are_none(tmp_path):
    callback = anchored(1, estimator=Counted)
    trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), ToyData())
    assert callback.standard_error is None
    assert not list(tmp_path.rglob("*standard_error*"))


def test_classes_that_cannot_be_told_apart_are_named(tmp_path):
    class Exchanging(AnchorEstimator):
        def compute(self):
            return from_flips(CLASSES, {0: 1, 1: 0}, 0.6)

    class Data(ToyData):
        class_names = ("ant", "bee", "cow")

    callback = anchored(1, estimator=Exchanging, estimate_from="last")
    with pytest.warns(UserWarning, match=r"cannot tell apart ant and bee, on which up to 56\.\d points"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), Data())


def test_iterable_data_is_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(*ToyData().train.tensors, strict=True))

    callback = anchored(1, estimate_from="last")
    with pytest.raises(TypeError, match="iterable Stream, whose samples have no index"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), DataLoader(Stream(), batch_size=16))
    assert callback.stage == 1


@pytest.mark.parametrize(
    ("predict", "error", "message"),
    [
        (
            lambda module, batch: (module(batch[0])[:, :2], batch[1]),
            ValueError,
            r"logits of shape \(N, 3\), but the network gave shape \(16, 2\)",
        ),
        (lambda module, batch: ([1.0], batch[1]), ValueError, "but the network gave a list"),
        (lambda module, batch: module(batch[0]), TypeError, r"predict must return .* got a Tensor"),
        (lambda module, batch: (module(batch[0]), [0]), TypeError, r"predict must return .* got \(Tensor, list\)"),
        (lambda module, batch: (module(batch[0]), batch[1].float()), TypeError, "needs integer noisy labels"),
    ],
)
def test_what_the_estimation_pass_cannot_take_is_refused_before_the_first_step(tmp_path, predict, error, message):
    run = trainer(tmp_path, [anchored(1, estimate_from="last", predict=predict)], max_epochs=2)
    with pytest.raises(error, match=message):
        run.fit(classifier(), ToyData())
    assert run.global_step == 0


def test_the_rehearsal_leaves_no_trace(tmp_path, monkeypatch):
    """Neither random state nor training flags: the fit is the one without it."""
    one, two = classifier(dropout=0.3), classifier(dropout=0.3)
    torch.manual_seed(0)
    trainer(tmp_path, [anchored(2)], max_epochs=3).fit(one, ToyData())
    monkeypatch.setattr(EstimationPhase, "rehearse", lambda *args: None)
    torch.manual_seed(0)
    trainer(tmp_path, [anchored(2)], max_epochs=3).fit(two, ToyData())
    assert torch.equal(weights(one), weights(two))


def test_an_estimation_loader_may_give_whole_batches(tmp_path):
    """A data set whose items are batches: ``DataLoader(batch_size=None)``."""

    class Batches(Dataset):
        def __init__(self, whole):
            self.whole = whole

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return self.whole[16 * index : 16 * (index + 1)]

    class Data(ToyData):
        def estimation_dataloader(self):
            return DataLoader(Batches(self.train), batch_size=None)

    batches, samples = anchored(1), anchored(1)
    trainer(tmp_path, [batches], max_epochs=2).fit(classifier(), Data())
    trainer(tmp_path, [samples], max_epochs=2).fit(classifier(), ToyData())
    assert torch.equal(batches.transition, samples.transition)


def test_diverged_networks_are_refused(tmp_path):
    callback = anchored(
        1, estimate_from="last", predict=lambda module, batch: (module(batch[0]) * float("nan"), batch[1])
    )
    with pytest.raises(ValueError, match="NaN or infinite predictions"):
        trainer(tmp_path, [callback], max_epochs=2).fit(classifier(), ToyData())


def test_a_shuffling_estimation_loader_is_named(tmp_path):
    class Shuffled(ToyData):
        def estimation_dataloader(self):
            return DataLoader(self.train, batch_size=16, shuffle=True)

    with pytest.warns(UserWarning, match=r"estimation_dataloader\(\) draws from RandomSampler"):
        trainer(tmp_path, [anchored(1)], max_epochs=2).fit(classifier(), Shuffled())


def test_an_augmenting_estimation_loader_is_named(tmp_path):
    class Varied(TensorDataset):
        transform = RandomCropFlip(5)

    class Data(ToyData):
        def estimation_dataloader(self):
            return DataLoader(Varied(*self.train.tensors), batch_size=16)

    with pytest.warns(UserWarning, match="reads a Varied that varies its inputs at random"):
        trainer(tmp_path, [anchored(1)], max_epochs=2).fit(classifier(), Data())


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")
def test_t_hat_is_saved_before_backward_refuses_it(tmp_path):
    """T-hat is finished work: a singular one must not be lost to the error that it causes."""

    class Singular(AnchorEstimator):
        def compute(self):
            return torch.full((CLASSES, CLASSES), 1 / CLASSES)

    callback = anchored(1, estimator=Singular)
    model = classifier(correction=BackwardCorrection(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"[Ss]ingular|condition"):
        trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert (tmp_path / "lightning_logs" / "version_0" / "transition.npy").exists()


def test_an_estimate_against_the_evidence_is_said(tmp_path):
    class Sure(AnchorEstimator):
        def compute(self):
            return torch.eye(CLASSES)

    callback = anchored(1, estimator=Sure, monitor="val_accuracy", mode="max")
    with pytest.warns(UserWarning, match=r"T-hat is nearly the identity, though noisy validation accuracy is only 0.5"):
        trainer(tmp_path, [callback], max_epochs=2).fit(Scripted(0.5), ToyData())
