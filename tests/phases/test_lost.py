"""Classes that training loses, and the stage that begins again for them."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from toy import CLASSES, TRUE, Indexed, adam, classifier, trainer, uncorrected, weights

from noisylightning import AnchorEstimator, EstimateTransitionCallback, ForwardCorrection, NoisyLabelClassifier
from noisylightning.functional import verdict
from noisylightning.phases import Fit, Memory, correction
from noisylightning.phases.estimation import predict_first_two
from noisylightning.phases.lost import can_be_lost, can_draw_head, draw_head, find_lost
from noisylightning.transition import from_flips, symmetric

ALIKE = from_flips(CLASSES, {0: 1, 1: 0}, 0.45)
pytestmark = pytest.mark.filterwarnings("ignore:.*cannot tell apart", "ignore:Checkpoint directory")


class Alike(AnchorEstimator):
    """Two classes that noisy labels hardly tell apart."""

    def compute(self):
        return ALIKE.clone()


class Begins(Callback):
    """Keeps the weights at the beginning of each epoch of stage two."""

    def __init__(self, callback) -> None:
        self.callback, self.weights = callback, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.callback.stage == 2 and batch_idx == 0:
            self.weights.append({name: value.clone() for name, value in pl_module.backbone.state_dict().items()})


def fit(folder, monkeypatch, lost, epochs=10, callbacks=(), **options):
    """Stage two has all but the first epoch; ``lost(epoch)`` says which classes are."""
    monkeypatch.setattr(correction, "find_lost", lambda fit, *_: lost(fit.trainer.current_epoch))
    callback = EstimateTransitionCallback(1, estimator=Alike)
    begins, model = Begins(callback), classifier(dropout=0.3)
    run = trainer(folder, [callback, begins, *callbacks], max_epochs=1 + epochs, enable_checkpointing=bool(callbacks))
    torch.manual_seed(0)
    run.fit(model, Indexed(), **options)
    return callback, begins.weights, run, model


def test_which_classes_may_be_lost():
    assert can_be_lost(ALIKE) == [0, 1]
    assert can_be_lost(ALIKE.to_sparse()) == [0, 1]
    assert can_be_lost(TRUE) == can_be_lost(symmetric(5, 0.4)) == []


def test_a_stage_that_has_lost_a_class_begins_again_with_another_last_layer(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    looked = []

    def lost(epoch):
        looked.append(epoch)
        return [1] if len(looked) < 3 else []

    callback, begins, run, model = fit(tmp_path, monkeypatch, lost)
    assert looked == [3, 5, 7]  # after two of ten epochs, before the next
    assert run.current_epoch == run.max_epochs == 11 + 4
    assert callback.added_epochs == 4
    assert caplog.text.count("Stage two has lost class 1, labelled like another class: it begins again") == 2
    first = classifier(dropout=0.3).backbone.state_dict()
    for attempt in (0, 2, 4):
        assert torch.equal(begins[attempt]["0.weight"], first["0.weight"])
    heads = [begins[attempt]["3.weight"] for attempt in (0, 2, 4)]
    assert torch.equal(heads[0], first["3.weight"])
    assert not torch.equal(heads[1], heads[0])
    assert not torch.equal(heads[2], heads[1])
    assert not torch.equal(begins[3]["0.weight"], first["0.weight"])
    assert torch.equal(model.correction.transition, callback.transition)
    memory = callback._memory
    assert (memory.start, memory.initial) == (None, None)


def test_without_a_loss_nothing_changes(tmp_path, monkeypatch):
    *_, run, model = fit(tmp_path, monkeypatch, lambda epoch: [])
    with monkeypatch.context() as patch:
        patch.setattr(correction, "can_be_lost", lambda transition: [])
        *_, unwatched = fit(tmp_path, monkeypatch, lambda epoch: [0])
    assert run.current_epoch == 11
    assert torch.equal(weights(model), weights(unwatched))


def test_after_some_draws_it_gives_up_and_warns(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"Stage two has lost classes 0, 1 4 times"):
        _, _, run, _ = fit(tmp_path, monkeypatch, lambda epoch: [0, 1], epochs=3)
    assert run.current_epoch == 4 + 3


def test_it_resumes_bit_for_bit(tmp_path, monkeypatch):
    def lost(epoch):
        return [1] if epoch < 6 else []

    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor=None)
    _, _, run, whole = fit(tmp_path, monkeypatch, lost, callbacks=[keep])
    assert run.max_epochs == 11 + 4
    for epoch in (1, 2, 3, 4, 5, 7):
        again = ModelCheckpoint(tmp_path, save_top_k=-1, filename="again-{epoch}", monitor=None)
        path = tmp_path / f"epoch={epoch}.ckpt"
        *_, last, model = fit(tmp_path, monkeypatch, lost, callbacks=[again], ckpt_path=path, weights_only=True)
        assert last.current_epoch == last.max_epochs == run.max_epochs
        assert torch.equal(weights(model), weights(whole))


def test_fresh_weights_are_the_same_where_a_fit_resumes_before_they_are_drawn(tmp_path):
    class Fresh(NoisyLabelClassifier):
        def build_backbone(self):
            return torch.nn.Linear(5, CLASSES)

    last = []
    for path in (None, tmp_path / "epoch=1.ckpt"):
        callback = EstimateTransitionCallback(2, estimator=AnchorEstimator, reinit="fresh")
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", monitor=None)
        torch.manual_seed(0)
        model = Fresh(correction=ForwardCorrection(num_classes=CLASSES), optimizer=adam)
        run = trainer(tmp_path, [callback, keep], max_epochs=4, enable_checkpointing=True)
        run.fit(model, Indexed(shuffle=True), ckpt_path=path, weights_only=True)
        last.append(weights(model))
    assert torch.equal(*last)


def test_the_last_layer_alone_is_drawn_and_the_draw_depends_on_seed_and_epoch():
    drawn = []
    for seed, epoch in ((0, 1), (0, 1), (1, 1), (0, 2)):
        model = classifier()
        run = SimpleNamespace(
            current_epoch=epoch,
            global_rank=0,
            fit_loop=SimpleNamespace(is_resuming=False, epoch_loop=SimpleNamespace(restarting=False)),
            strategy=SimpleNamespace(broadcast=lambda value: value),
        )
        draw_head(Fit(run, model, Memory(seed=seed)))
        drawn.append(model.backbone[-1].weight.detach())
        assert torch.equal(model.backbone[0].weight, classifier().backbone[0].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def test_a_head_is_the_last_linear_layer_or_what_the_module_names():
    assert can_draw_head(classifier())
    assert not can_draw_head(NoisyLabelClassifier(torch.nn.Conv2d(1, 3, 1), num_classes=3))
    assert can_draw_head(NoisyLabelClassifier(torch.nn.Conv2d(1, 3, 1), num_classes=3, head_layer=""))
    assert not can_draw_head(NoisyLabelClassifier(torch.nn.Identity(), num_classes=3, head_layer=""))


def test_a_class_that_is_never_predicted_is_found(tmp_path, monkeypatch):
    found = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                fit = Fit(trainer, pl_module, Memory(transition=ALIKE))
                found.append(find_lost(fit, predict_first_two))
                with torch.no_grad():
                    pl_module.backbone[-1].bias[1] = -99
                found.append(find_lost(fit, predict_first_two))
                assert pl_module.training

    monkeypatch.setattr(verdict, "_ENOUGH", 5)
    trainer(tmp_path, [Look()], max_epochs=4).fit(uncorrected(), Indexed())
    assert found == [[], [1]]
