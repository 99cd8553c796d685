"""What stage two begins from."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from toy import CLASSES, TRUE, ForeignClassifier, ToyData, anchored, backbone, classifier, trainer, weights

from noisylightning import ForwardCorrection, ImportanceReweighting
from noisylightning.transition import (
    NoiseAdaptation,
    TotalVariation,
    TransitionRevision,
    VolumeMinimization,
    relative_l1_error,
)


def learning(kind) -> ForwardCorrection | ImportanceReweighting:
    if kind is TransitionRevision:
        return ImportanceReweighting(TransitionRevision(CLASSES))
    return ForwardCorrection(kind(CLASSES))


class Watch(Callback):
    """Keeps the network's weights, the scores of T, T and what was logged, at the end of each epoch."""

    def __init__(self):
        self.network, self.scores, self.transitions, self.errors = [], [], [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.network.append(weights(pl_module.backbone))
        self.scores.append([part.detach().clone() for part in pl_module.correction.parameters()])
        self.transitions.append(pl_module.correction.transition.detach().clone())
        self.errors.append(trainer.callback_metrics.get("transition_error"))


@pytest.mark.parametrize("kind", [VolumeMinimization, TransitionRevision, NoiseAdaptation, TotalVariation])
def test_a_learnt_transition_waits_in_stage_one_and_learns_on_from_the_estimate(tmp_path, kind):
    learnt, fixed = Watch(), Watch()
    for watch, correction in ((learnt, learning(kind)), (fixed, ForwardCorrection(num_classes=CLASSES))):
        callback = anchored(stage_one_epochs=2)
        torch.manual_seed(0)
        model = classifier(dropout=0.3, correction=correction, transition_lr=0.01)
        trainer(tmp_path, [callback, watch], max_epochs=4).fit(model, ToyData())
        if watch is learnt:
            estimate, last = callback.transition, model.correction.transition.detach()
            torch.testing.assert_close(model.correction.T.start, estimate)
    assert torch.equal(estimate, callback.transition)
    for epoch in (0, 1):
        assert torch.equal(learnt.network[epoch], fixed.network[epoch])
        assert torch.equal(learnt.transitions[epoch], torch.eye(CLASSES))
        (scores,) = learnt.scores[epoch]
        assert torch.equal(scores, next(learning(kind).parameters()))
    assert 1e-3 < (last - estimate).abs().max() < 0.3
    assert learnt.errors[:3] == [None] * 3  # a callback sees what was logged at the end of the epoch before
    torch.testing.assert_close(learnt.errors[3], relative_l1_error(learnt.transitions[2], TRUE))
    assert fixed.errors == [None] * 4


@pytest.mark.parametrize("kind", [VolumeMinimization, TransitionRevision, NoiseAdaptation, TotalVariation])
def test_a_learnt_transition_needs_no_estimate(tmp_path, kind):
    watch, correction = Watch(), learning(kind)
    model = classifier(correction=correction, transition_lr=0.01)
    first = correction.transition.detach()
    trainer(tmp_path, [watch], max_epochs=2).fit(model, ToyData())
    assert (correction.transition - first).abs().max() > 1e-3
    torch.testing.assert_close(watch.errors[1], relative_l1_error(watch.transitions[0], TRUE))


def test_a_learnt_transition_that_nobody_would_train_is_refused(tmp_path):
    correction = ForwardCorrection(NoiseAdaptation(CLASSES))
    callback = anchored(1, monitor="val_acc", mode="max", correction=correction,
                                          loss_attribute="criterion")  # fmt: skip
    with pytest.raises(ValueError, match="NoiseAdaptation learns, but ForeignClassifier's optimizer does not have it"):
        trainer(tmp_path, [callback], max_epochs=2).fit(ForeignClassifier(), ToyData())


@pytest.mark.parametrize("reinit", ["initial", "keep", "fresh"])
def test_stage_two_begins_where_it_was_told_to(tmp_path, reinit):
    class Fresh(ForeignClassifier):
        def reset_weights(self):
            self.net.load_state_dict(backbone(seed=7).state_dict())

    seen = {}

    class Spy(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen["end"] = weights(pl_module)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 0:
                seen["start"] = weights(pl_module)
                seen["stage one's end"] = seen["end"]

    callback = anchored(
        stage_one_epochs=2,
        estimate_from="last",
        reinit=reinit,
        correction=ForwardCorrection(num_classes=CLASSES),
        loss_attribute="criterion",
    )
    model = Fresh()
    first = weights(model)
    trainer(tmp_path, [callback, Spy()], max_epochs=3).fit(model, ToyData())
    fresh = weights(backbone(seed=7))
    assert torch.equal(seen["start"], {"initial": first, "keep": seen["stage one's end"], "fresh": fresh}[reinit])
