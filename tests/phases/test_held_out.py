"""Predictions of every sample by a corrected network that was trained without it."""

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from toy import CLASSES, ToyData, adam, classifier, trainer

from noisylightning import EstimateTransitionCallback, ForwardCorrection
from noisylightning.data import ArrayDataModule
from noisylightning.functional.bootstrap import part_of
from noisylightning.phases import held_out_predictions
from noisylightning.transition import symmetric

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Notes(Callback):
    """Which samples each epoch trains on."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, *_):
        self.epochs.append(set())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1] |= set(batch[2].tolist())


def data() -> ArrayDataModule:
    return ArrayDataModule(*ToyData().train.tensors, with_index=True, batch_size=32)


def model():
    return classifier(correction=ForwardCorrection(symmetric(CLASSES, 0.3)), optimizer=adam)


@pytest.mark.parametrize("folds", [2, 3])
def test_each_part_is_predicted_by_a_network_trained_without_it(folds, tmp_path):
    notes, module = Notes(), data()
    foreign = [EstimateTransitionCallback(stage_one_epochs=1), ModelCheckpoint(tmp_path / "none")]
    run = trainer(tmp_path, [notes, *foreign], 9, enable_checkpointing=True)
    found = held_out_predictions(run, model(), module, folds, epochs=2)
    assert len(notes.epochs) == 2 * folds
    trains = set(module.train_index.tolist())
    parts = part_of(torch.arange(len(found)), folds)
    for fold in range(folds):
        part = set((parts == fold).nonzero().flatten().tolist())
        assert notes.epochs[2 * fold] == notes.epochs[2 * fold + 1] == trains - part
    assert torch.equal(found.index, torch.arange(len(module.load_train()[1])))
    assert torch.equal(found.noisy_labels, module.load_train()[1])
    assert found.held_out.all()
    assert not (tmp_path / "none").exists()


def test_the_first_part_is_predicted_as_by_a_fit_of_its_own(tmp_path):
    module = data()
    torch.manual_seed(0)
    found = held_out_predictions(trainer(tmp_path), model(), module, 2, epochs=2)
    keeps = part_of(torch.arange(len(found)), 2) != 0
    inputs, labels = module.load_train()

    class First(ArrayDataModule):
        def setup(self, stage=None):
            super().setup(stage)
            self.train_index = self.train_index[keeps[self.train_index]]

    alone = model()
    torch.manual_seed(0)
    trainer(tmp_path, max_epochs=2).fit(alone, First(inputs, labels, with_index=True, batch_size=32))
    with torch.no_grad():
        expected = alone.eval()(inputs)[~keeps]
    torch.testing.assert_close(found.logits[~keeps], expected)


def test_a_request_to_stop_ends_no_other_network(tmp_path):
    class Impatient(EarlyStopping):
        pass

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 0

    found = held_out_predictions(trainer(tmp_path, [Impatient("val_loss"), Notes()]), model(), data(), 2, epochs=3)
    assert found.held_out.all()


def test_fewer_than_two_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        held_out_predictions(trainer(tmp_path), model(), data(), 1, epochs=1)
