"""The head alone, then the whole network: in which epochs of which networks, and that a fit resumes."""

from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from toy import CLASSES, FEATURES, TRUE, ForeignClassifier, Indexed, Networks, ToyData, anchored, counted, trainer

from noisylightning import (
    EstimateTransitionCallback,
    ForwardCorrection,
    HeadFirst,
    NoisyLabelClassifier,
)
from noisylightning.phases import CorrectionPhase
from noisylightning.transition import NoiseAdaptation


def network() -> nn.Sequential:
    """An encoder that would show whether it trains: batch norm moves, dropout draws, weight decay shrinks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        return nn.Sequential(encoder, nn.Linear(16, CLASSES))


def decaying(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)


def model(correction=None, **kwargs) -> NoisyLabelClassifier:
    correction = ForwardCorrection(num_classes=CLASSES) if correction is None else correction
    return NoisyLabelClassifier(network(), correction, optimizer=decaying, **kwargs)


def encoder_of(module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().float() for value in module.backbone[0].state_dict().values()])


class Moves(Callback):
    """Notes of each epoch whether its steps have moved encoder and head."""

    def __init__(self) -> None:
        self.encoder: dict[int, bool] = {}
        self.head: dict[int, bool] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._before = encoder_of(pl_module), pl_module.backbone[1].weight.detach().clone()
        assert all(parameter.requires_grad for parameter in pl_module.backbone.parameters())

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        encoder, head = self._before
        epoch = trainer.current_epoch
        self.encoder[epoch] = self.encoder.get(epoch, False) or not torch.equal(encoder, encoder_of(pl_module))
        self.head[epoch] = self.head.get(epoch, False) or not torch.equal(head, pl_module.backbone[1].weight)

    @property
    def whole(self) -> list[int]:
        assert all(self.head.values())
        return [epoch for epoch, moves in self.encoder.items() if moves]


def fitted(folder, module, *callbacks, data=None, ckpt_path=None, **settings):
    run = trainer(folder, callbacks, **{"max_epochs": 4, **settings})
    torch.manual_seed(0)
    run.fit(module, data or ToyData(), ckpt_path=ckpt_path, weights_only=True)
    return run


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_in_a_fit_without_phases_the_encoder_stands_still_for_so_many_epochs(tmp_path, epochs):
    moves, module = Moves(), model(ForwardCorrection(TRUE))
    fitted(tmp_path, module, HeadFirst(epochs), moves)
    assert moves.whole == list(range(epochs, 4))
    assert all(part.training for part in module.backbone.modules())
    assert "training_step" not in vars(module)


def test_every_network_that_begins_untrained_begins_with_its_head(tmp_path):
    seen, moves = Networks(), Moves()
    callback = EstimateTransitionCallback(2, estimator=counted, predict=seen, round_epochs=1)
    fitted(tmp_path, model(), HeadFirst(1), callback, seen, moves, data=Indexed())
    names = seen.names()
    assert names[:2] == ["noisy labels"] * 2
    assert names[-2:] == ["correction"] * 2
    first = {0, names.index("correction")} | {2, 4}  # of two networks of two epochs, each without a part
    assert names[2:6] == ["folds"] * 4
    assert names.count("refinement") > 2
    assert moves.whole == [epoch for epoch in range(len(names)) if epoch not in first]


@pytest.mark.parametrize(("reinit", "whole"), [("initial", [1, 2, 4]), ("keep", [1, 2, 3, 4])])
def test_stage_two_begins_with_the_head_unless_it_keeps_weights(tmp_path, reinit, whole):
    moves = Moves()
    fitted(tmp_path, model(), HeadFirst(1), anchored(3, reinit=reinit), moves, max_epochs=5)
    assert moves.whole == whole


def test_alone_the_head_trains_as_on_features_that_are_kept(tmp_path):
    """The same fit as that of a head on what the encoder makes of the samples, once."""
    module, data = model(ForwardCorrection(TRUE)), ToyData()
    encoder = network()[0].eval()
    head = NoisyLabelClassifier(network()[1], ForwardCorrection(TRUE), optimizer=decaying)
    fitted(tmp_path, module, HeadFirst(4), data=data)
    with torch.no_grad():
        for part in (data.train, data.val):
            part.tensors = encoder(part.tensors[0]), part.tensors[1]
    fitted(tmp_path, head, data=data)
    torch.testing.assert_close(module.backbone[1].weight, head.backbone.weight)


def test_groups_have_their_rates_and_a_schedule_scales_them(tmp_path):
    module = model(
        ForwardCorrection(NoiseAdaptation(CLASSES)),
        encoder_lr=1e-4,
        transition_lr=1e-3,
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    )
    groups = module.parameter_groups()
    assert [len(group["params"]) for group in groups] == [2, 4, 1]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module.parameters()}
    run = fitted(tmp_path, module, HeadFirst(1), max_epochs=2)
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.005, 0.25e-4, 0.25e-3])


def test_the_head_may_be_more_than_the_last_layer():
    whole = nn.Sequential(nn.Linear(FEATURES, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
    module = NoisyLabelClassifier(whole, num_classes=CLASSES, encoder_lr=1e-4, head_layer="1")
    assert [len(group["params"]) for group in module.parameter_groups()] == [4, 2]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_it_resumes_bit_for_bit(tmp_path):
    def run(ckpt_path=None, epochs=1):
        module = model(encoder_lr=0.005)
        every = ModelCheckpoint(tmp_path / "every", filename="{epoch}", save_top_k=-1)
        callbacks = HeadFirst(epochs), anchored(2), every
        fitted(tmp_path, module, *callbacks, ckpt_path=ckpt_path, enable_checkpointing=True)
        return module.state_dict()

    whole = run()
    for epoch in (0, 2):
        resumed = run(tmp_path / "every" / f"epoch={epoch}.ckpt")
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(ValueError, match=r"written with HeadFirst\(epochs=1\), but this one has epochs=2"):
        run(tmp_path / "every" / "epoch=2.ckpt", epochs=2)


def test_a_foreign_module_freezes_all_but_its_last_linear_layer_and_is_left_as_it_was(tmp_path):
    module = ForeignClassifier()
    before = module.net[0].weight.detach().clone()
    fitted(tmp_path, module, HeadFirst(4))
    assert torch.equal(module.net[0].weight, before)
    module.net[3].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(tmp_path, module, HeadFirst(4))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert "training_step" not in vars(module)


def test_phases_say_whether_they_go_on_from_trained_weights():
    callback = anchored(2)
    assert [phase.name for phase in callback.phases if phase.goes_on()] == ["refinement"]
    assert CorrectionPhase("keep").goes_on()


@pytest.mark.parametrize(
    ("make", "build", "sentence"),
    [
        (partial(HeadFirst, 0), None, "HeadFirst's epochs must be at least 1"),
        (None, partial(model, encoder_lr=0.0), "encoder_lr must be positive"),
        (None, lambda: NoisyLabelClassifier(nn.Linear(5, 3), num_classes=3, encoder_lr=1e-3), "no parameters before"),
        (None, partial(model, encoder_lr=1e-3, head_layer="fc"), "has no layer 'fc'"),
        (
            partial(HeadFirst, 1),
            lambda: NoisyLabelClassifier(nn.Linear(5, 3), ForwardCorrection(TRUE)),
            "Linear has no parameters before its head",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(tmp_path, make, build, sentence):
    with pytest.raises(ValueError, match=sentence):
        fitted(tmp_path, build and build(), make and make())


def test_ddp_that_waits_for_every_gradient_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        HeadFirst(1).setup(trainer(tmp_path, strategy="ddp", devices=2), model(), "fit")
