"""A module that holds one optimizer and returns it at each call: every stage begins with its first state."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler
from toy import CLASSES, ForeignClassifier, ToyData, anchored, backbone, trainer, weights

from noisylightning import ForwardCorrection


class Held(ForeignClassifier):
    """Holds an optimizer, or a dictionary with one and its scheduler, made before the fit."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe(self.parameters())

    def configure_optimizers(self):
        return self.recipe


class HeldAndScheduled(Held):
    """Builds a new scheduler around the same optimizer at each call."""

    def __init__(self, schedule, optimizer=torch.optim.SGD):
        super().__init__(lambda parameters: sgd(parameters) if optimizer is torch.optim.SGD else adam(parameters))
        self.schedule = schedule

    def configure_optimizers(self):
        return {"optimizer": self.recipe, "lr_scheduler": self.schedule(self.recipe, self.trainer)}


class Cached(ForeignClassifier):
    """Makes its optimizer at the first call, hidden from whoever looks at the attributes."""

    def __init__(self):
        super().__init__()
        made = []
        self.make = lambda: made[0] if made else made.append(adam(self.parameters())) or made[0]

    def configure_optimizers(self):
        optimizer = self.make()
        return [optimizer], [lr_scheduler.LinearLR(optimizer, 0.25, total_iters=2)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.02, amsgrad=True)


def with_held_scheduler(parameters):
    optimizer = sgd(parameters)
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3)}


def one_cycle(optimizer, trainer):
    steps = trainer.estimated_stepping_batches
    return {"scheduler": lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps), "interval": "step"}


def warm_up(optimizer, trainer):
    rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=1)
    return lr_scheduler.SequentialLR(optimizer, [rise, lr_scheduler.ExponentialLR(optimizer, 0.5)], [1])


MODULES = {
    "sgd": lambda: Held(sgd),
    "adam": lambda: Held(adam),
    "held scheduler": lambda: Held(with_held_scheduler),
    "cached": Cached,
    "new cosine": lambda: HeldAndScheduled(lambda made, run: lr_scheduler.CosineAnnealingLR(made, run.max_epochs)),
    "new one-cycle": lambda: HeldAndScheduled(one_cycle),
    "new one-cycle, adam": lambda: HeldAndScheduled(one_cycle, torch.optim.AdamW),
    "new warm-up": lambda: HeldAndScheduled(warm_up),
    "new plateau": lambda: HeldAndScheduled(
        lambda made, run: {"scheduler": lr_scheduler.ReduceLROnPlateau(made, patience=0), "monitor": "val_acc"}
    ),
}


def attached(**arguments):
    correction = ForwardCorrection(num_classes=CLASSES)
    return anchored(2, estimate_from="last", correction=correction, loss_attribute="criterion", **arguments)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_stage_two_is_a_fresh_fit_with_a_new_optimizer(tmp_path, make):
    callback, both, alone = attached(), make(), make()
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, [callback, every], max_epochs=4, enable_checkpointing=True).fit(both, ToyData())
    alone.criterion = ForwardCorrection(callback.transition)
    trainer(tmp_path, max_epochs=2).fit(alone, ToyData())
    assert torch.equal(weights(both.net), weights(alone.net))
    for epoch in (0, 2) if make in (Cached, MODULES["held scheduler"], MODULES["new warm-up"]) else ():
        again = make()
        every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(tmp_path / "again", [attached(), every], 4, enable_checkpointing=True)
        run.fit(again, ToyData(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        assert torch.equal(weights(again.net), weights(both.net)), epoch


def test_a_module_that_makes_new_ones_is_asked_as_often_as_before(tmp_path):
    class Counting(ForeignClassifier):
        calls = 0

        def configure_optimizers(self):
            self.calls += 1
            return super().configure_optimizers()

    model = Counting()
    trainer(tmp_path, [attached()], max_epochs=4).fit(model, ToyData())
    assert model.calls == 2


def refused_before_the_first_step(folder: Path, model, message: str) -> None:
    run = trainer(folder, [attached()], max_epochs=4)
    with pytest.raises((ValueError, RuntimeError), match=message):
        run.fit(model, ToyData())
    assert run.global_step == 0


def test_an_optimizer_of_other_parameters_is_refused_before_the_first_step(tmp_path):
    model = Held(sgd)
    model.net = backbone()
    refused_before_the_first_step(tmp_path, model, "holds one SGD, 4 of whose 4 parameters are not the module's")


class Forgetful(torch.optim.SGD):
    def load_state_dict(self, state_dict):
        raise NotImplementedError("no way back")


class Closed(torch.optim.SGD):
    def state_dict(self):
        raise NotImplementedError("closed")


@pytest.mark.parametrize("kind", [Forgetful, Closed])
def test_an_optimizer_without_a_way_back_is_refused_before_the_first_step(tmp_path, kind):
    model = Held(lambda parameters: kind(parameters, lr=0.1))
    refused_before_the_first_step(tmp_path, model, f"returns one {kind.__name__} at every call, whose first state")


@pytest.mark.parametrize("kind", [Forgetful, Closed])
def test_an_optimizer_without_a_way_back_is_no_matter_where_a_new_one_is_made(tmp_path, kind):
    class New(ForeignClassifier):
        def configure_optimizers(self):
            return kind(self.net.parameters(), lr=0.1)

    callback = attached()
    trainer(tmp_path, [callback], max_epochs=4).fit(New(), ToyData())
    assert callback.stage == 2


def test_a_held_optimizer_may_be_hidden_in_a_list(tmp_path):
    model = Held(lambda parameters: [sgd(parameters)])
    model.net = backbone()
    refused_before_the_first_step(tmp_path, model, "holds one SGD")
