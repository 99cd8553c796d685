"""Projects that know nothing of us."""

from functools import partial

import lightning.pytorch
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from toy import CLASSES, TRUE, ForeignClassifier, ToyData, anchored, backbone, trainer, weights

from noisylightning import (
    ForwardCorrection,
)
from noisylightning.callbacks._attach import attach
from noisylightning.losses import CrossEntropy


def test_a_foreign_module_is_corrected_at_its_loss_attribute(tmp_path):
    model = ForeignClassifier()
    callback = anchored(
        2,
        monitor="val_acc",
        mode="max",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max")
    run = trainer(tmp_path, [callback, checkpoint], max_epochs=4, enable_checkpointing=True)
    run.fit(model, ToyData())
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.criterion(logits, labels), ForwardCorrection(callback.transition)(logits, labels))
    # Its checkpoints load into the module as its author wrote it.
    plain = ForeignClassifier()
    plain.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"])


def test_the_attached_correction_is_where_the_logits_are():
    """The trainer moves the module to the GPU, and back after the fit; ``meta`` stands in for it."""
    model, correction = ForeignClassifier(), ForwardCorrection(TRUE)
    attach(correction, model, "criterion")
    assert model.criterion(torch.zeros(2, CLASSES), torch.tensor([0, 1])).device.type == "cpu"
    logits, labels = torch.zeros(2, CLASSES, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):  # it has no values
        model.criterion(logits, labels)
    assert correction.transition.is_meta


def test_a_criterion_may_be_called_by_keywords():
    model, correction = ForeignClassifier(), ForwardCorrection(TRUE)
    attach(correction, model, "criterion")
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.criterion(input=logits, target=labels), correction(logits, labels))


def test_settings_that_the_criterion_loses_are_named():
    model = ForeignClassifier()
    model.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES), label_smoothing=0.1)
    correction = ForwardCorrection(num_classes=CLASSES, loss=CrossEntropy(weight=torch.ones(CLASSES)))
    with pytest.warns(UserWarning, match=r"ForeignClassifier.criterion has label_smoothing=0.1") as warned:
        attach(correction, model, "criterion")
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="weight=tensor|label_smoothing") as warned:
        attach(ForwardCorrection(num_classes=CLASSES), model, "criterion")
    assert len(warned) == 2


def test_a_foreign_module_may_take_the_transition_by_a_hook(tmp_path):
    class Hooked(ForeignClassifier):
        num_classes = CLASSES
        transition = None

        def on_transition_estimated(self, transition):
            self.transition = transition

    model = Hooked()
    callback = anchored(1, monitor="val_acc", mode="max")
    trainer(tmp_path, [callback], max_epochs=2).fit(model, ToyData())
    assert torch.equal(model.transition, callback.transition)


def test_batches_of_any_form_go_through_predict(tmp_path):
    def as_dict(samples):
        inputs, labels = zip(*samples, strict=True)
        return {"features": torch.stack(inputs), "labels": torch.stack(labels)}

    class Dicts(ForeignClassifier):
        def training_step(self, batch, batch_idx):
            return self.criterion(self(batch["features"]), batch["labels"])

    data = ToyData()
    loader = DataLoader(data.train, batch_size=16, collate_fn=as_dict)
    callback = anchored(
        1,
        estimate_from="last",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
        predict=lambda module, batch: (module(batch["features"]), batch["labels"]),
    )
    with pytest.warns(UserWarning, match="whatever augmentation"):
        trainer(tmp_path, [callback], max_epochs=2).fit(Dicts(), loader)
    assert callback.transition.shape == (CLASSES, CLASSES)
    callback = anchored(
        1, estimate_from="last", correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion"
    )
    with (
        pytest.warns(UserWarning, match="whatever augmentation"),
        pytest.raises(TypeError, match="a batch is a dict: pass predict"),
    ):
        trainer(tmp_path, [callback], max_epochs=2).fit(Dicts(), loader)


def test_manual_optimization_goes_through_both_stages(tmp_path):
    class Manual(ForeignClassifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    callback = anchored(
        2, estimate_from="last", correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion"
    )
    both, two = Manual(), Manual()
    trainer(tmp_path, [callback], max_epochs=4).fit(both, ToyData())
    again = ForwardCorrection(callback.transition)
    two.criterion = again
    trainer(tmp_path, max_epochs=2).fit(two, ToyData())
    assert torch.equal(weights(both.net), weights(two.net))


@pytest.mark.parametrize("manual", [False, True])
def test_a_criterion_that_training_does_not_call_is_refused(tmp_path, manual):
    class Deaf(ForeignClassifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            if not manual:
                return loss
            self.manual_backward(loss)
            return self.optimizers().step()

        def validation_step(self, batch, batch_idx):
            self.criterion(self(batch[0]), batch[1])

    correction = ForwardCorrection(num_classes=CLASSES)
    callback = anchored(2, estimate_from="last", correction=correction, loss_attribute="criterion")
    run = trainer(tmp_path, [callback], max_epochs=4)
    with pytest.raises(ValueError, match=r"Deaf.training_step does not call its 'criterion'"):
        run.fit(Deaf(), ToyData())
    assert run.global_step == manual


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_first_batch_may_be_skipped(tmp_path):
    class Skips(ForeignClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

    correction = ForwardCorrection(num_classes=CLASSES)
    callback = anchored(1, estimate_from="last", correction=correction, loss_attribute="criterion")
    trainer(tmp_path, [callback], max_epochs=2).fit(Skips(), ToyData())
    assert callback.stage == 2


# Routines that hold one optimizer


class Routine(LightningModule):
    """Of torch-uncertainty's form: the network, the loss and the optimizer's recipe come from outside."""

    def __init__(self, model, loss, optim_recipe):
        super().__init__()
        self.model = model
        self.loss = loss
        self.optim_recipe = optim_recipe
        self.val_metrics = MetricCollection({"cls/Acc": MulticlassAccuracy(CLASSES)}, prefix="val/")

    def forward(self, inputs):
        return self.model(inputs)

    def configure_optimizers(self):
        return self.optim_recipe

    def training_step(self, batch):
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch):
        self.val_metrics.update(self(batch[0]).softmax(dim=1), batch[1])

    def on_validation_epoch_end(self):
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()


def routine_of_that_form():
    network = backbone()
    return Routine(network, nn.CrossEntropyLoss(), torch.optim.Adam(network.parameters(), lr=0.02))


def routine_of_torch_uncertainty():
    routines = pytest.importorskip("torch_uncertainty.routines")
    network = backbone()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    return routines.ClassificationRoutine(network, CLASSES, nn.CrossEntropyLoss(), optim_recipe=optimizer)


@pytest.mark.filterwarnings("ignore:T is estimated on TensorDataset, the training data set")
@pytest.mark.filterwarnings("ignore:You called `self.log")
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("make", [routine_of_that_form, routine_of_torch_uncertainty])
def test_a_routine_that_holds_one_optimizer_is_served(tmp_path, make):
    callback = anchored(
        2,
        monitor="val/cls/Acc",
        mode="max",
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="loss",
    )
    both, alone = make(), make()
    loaders = ToyData().train_dataloader(), ToyData().val_dataloader()
    fit = trainer if isinstance(both, LightningModule) else partial(trainer, kind=lightning.pytorch.Trainer)
    fit(tmp_path, [callback], max_epochs=4).fit(both, *loaders)
    alone.loss = ForwardCorrection(callback.transition)
    fit(tmp_path, max_epochs=2).fit(alone, *loaders)
    assert callback.stage == 2
    assert torch.equal(weights(both.model), weights(alone.model))
