"""A fit taken up from a checkpoint ends bit for bit where the uninterrupted one ends."""

from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy import (
    CLASSES,
    ForeignClassifier,
    Indexed,
    Networks,
    ToyData,
    adam,
    anchored,
    backbone,
    classifier,
    counted,
    trainer,
)

from noisylightning import (
    BackwardCorrection,
    EstimateTransitionCallback,
    ForwardCorrection,
    NoisyLabelClassifier,
    PartDependentEstimator,
)
from noisylightning.transition import NoiseAdaptation, PartDependentTransition

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Shuffled(ToyData):
    """Shuffled by the global random state, as most projects shuffle; with the samples' index."""

    def __init__(self):
        super().__init__()
        self.train = TensorDataset(*self.train.tensors, torch.arange(len(self.train)))
        self.val = TensorDataset(*self.val.tensors, len(self.train) + torch.arange(len(self.val)))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=16, shuffle=True)


class ForeignWithDropout(ForeignClassifier):
    def __init__(self):
        super().__init__()
        self.net = backbone(dropout=0.3)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def ours():
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)  # noqa: E731
    return classifier(dropout=0.3, optimizer=adam, lr_scheduler=schedule)


def learning():
    """With a T that learns on from T-hat."""
    correction = ForwardCorrection(NoiseAdaptation(CLASSES, pull=0.1))
    return classifier(dropout=0.3, correction=correction, transition_lr=0.01)


def of_the_sample():
    return classifier(dropout=0.3, correction=ForwardCorrection(PartDependentTransition(CLASSES)))


def run(folder, model, callback, extra=(), ckpt_path=None, max_epochs=5, **options):
    every = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1)
    best = ModelCheckpoint(folder / "best", monitor=callback.monitor, mode=callback.mode)
    fit = trainer(
        folder, [callback, best, every, *(make() for make in extra)], max_epochs, enable_checkpointing=True, **options
    )
    torch.manual_seed(0)
    fit.fit(model, Shuffled(), ckpt_path=ckpt_path, weights_only=True)
    return best


@pytest.mark.parametrize(
    ("make", "arguments", "extra"),
    [
        (ours, {"stage_one_epochs": 2}, ()),
        (ours, {"stage_one_epochs": 2, "estimate_from": "last", "reinit": "keep"}, ()),
        (ours, {"stage_one_steps": 8, "estimate_from": "last"}, ()),
        (ours, {"stage_one_epochs": 2}, (WeightAveraging,)),
        (learning, {"stage_one_epochs": 2}, ()),
        (learning, {"stage_one_epochs": 2}, (WeightAveraging,)),
        (of_the_sample, {"stage_one_epochs": 2, "estimator": partial(PartDependentEstimator, num_parts=4)}, ()),
        (ours, {"stage_one_epochs": 4}, (lambda: EarlyStopping("val_accuracy", mode="max", patience=1, min_delta=9),)),
        (
            ForeignWithDropout,
            {
                "stage_one_epochs": 2,
                "monitor": "val_acc",
                "mode": "max",
                "correction": "forward",
                "loss_attribute": "criterion",
            },
            (),
        ),
    ],
    ids=[
        "ours",
        "keep",
        "steps",
        "averaged",
        "learnt",
        "learnt and averaged",
        "of the sample",
        "early stopping",
        "foreign",
    ],
)
def test_every_epoch_end_resumes_bit_for_bit(tmp_path, make, arguments, extra):
    def callback():
        given = dict(arguments)
        if given.get("correction"):
            given["correction"] = ForwardCorrection(num_classes=CLASSES)
        return anchored(**given)

    whole, first = make(), callback()
    best = run(tmp_path / "whole", whole, first, extra)
    epochs = sorted((tmp_path / "whole" / "every").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert len(epochs) >= 3
    for checkpoint in epochs[:-1]:
        model, again = make(), callback()
        resumed = run(tmp_path / "whole", model, again, extra, ckpt_path=checkpoint)
        assert torch.equal(weights(model), weights(whole)), checkpoint.stem
        assert torch.equal(again.transition, first.transition)
        assert again.stage == 2
        assert again.stage_one_epoch == first.stage_one_epoch
        assert resumed.best_model_score == best.best_model_score


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A fit with the default: stage one, two networks without a half, two rounds of two and one T-hat, stage two."""
    folder = tmp_path_factory.mktemp("refined")
    return folder, *refine(folder)


def refine(folder, ckpt_path=None):
    model, seen = ours(), Networks()
    callback = EstimateTransitionCallback(2, estimator=counted, predict=seen)
    every = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1)
    fit = trainer(folder, [callback, every, seen], 4, enable_checkpointing=True)
    torch.manual_seed(0)
    fit.fit(model, Indexed(shuffle=True), ckpt_path=ckpt_path, weights_only=True)
    return model, callback, seen


def test_the_fit_that_is_resumed_below_has_every_part_and_round(refined):
    *_, seen = refined
    assert seen.names() == ["noisy labels"] * 2 + ["folds"] * 4 + ["refinement"] * 10 + ["correction"] * 2


@pytest.mark.parametrize("epoch", range(17))
def test_every_part_and_round_resumes_bit_for_bit(refined, epoch, monkeypatch):
    monkeypatch.setattr("noisylightning.phases.report.publish_transition", lambda *args: None)  # draws for a second
    folder, whole, first, seen = refined
    model, again, rest = refine(folder, folder / "every" / f"epoch={epoch}.ckpt")
    assert torch.equal(weights(model), weights(whole))
    assert torch.equal(again.transition, first.transition)
    assert torch.equal(again.standard_error, first.standard_error)
    assert rest.epochs == seen.epochs[epoch + 1 :]
    assert rest.trained[-1] == seen.trained[-1][-len(rest.trained[-1]) :]


def test_a_resumed_hook_is_told_the_transition_again(tmp_path):
    class Hooked(ForeignClassifier):
        num_classes = CLASSES
        told = None

        def on_transition_estimated(self, transition):
            self.told = transition

    callback = anchored(1, monitor="val_acc", mode="max")
    run(tmp_path / "whole", Hooked(), callback, max_epochs=3)
    model = Hooked()
    run(
        tmp_path / "whole",
        model,
        anchored(1, monitor="val_acc", mode="max"),
        ckpt_path=tmp_path / "whole" / "every" / "epoch=1.ckpt",
        max_epochs=3,
    )
    assert torch.equal(model.told, callback.transition)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_stage_two_checkpoint_tests_and_predicts_without_the_callback(tmp_path):
    callback = anchored(2)
    best = run(tmp_path, ours(), callback)
    plain = trainer(tmp_path)
    model = ours()
    tested = plain.test(model, ToyData(), ckpt_path=best.best_model_path, verbose=False)[0]
    assert tested["test_accuracy"] > 0.5
    assert torch.equal(model.correction.transition, callback.transition)
    predicted = torch.cat(plain.predict(ours(), ToyData(), ckpt_path=best.best_model_path))
    loaded = NoisyLabelClassifier.load_from_checkpoint(best.best_model_path, weights_only=True, backbone=backbone())
    assert torch.equal(predicted.argmax(dim=1), loaded.eval()(ToyData().test.tensors[0]).argmax(dim=1))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tmp_path / "whole", ours(), anchored(2))
    checkpoint = tmp_path / "whole" / "every" / "epoch=0.ckpt"
    with pytest.raises(ValueError, match=r"stage_one_epochs=2.*this one has stage_one_epochs=3"):
        run(tmp_path / "other", ours(), anchored(3), ckpt_path=checkpoint)


def test_a_checkpoint_of_another_correction_is_refused(tmp_path):
    def callback(correction):
        return anchored(2, monitor="val_acc", mode="max", correction=correction, loss_attribute="criterion")

    run(tmp_path / "whole", ForeignClassifier(), callback(ForwardCorrection(num_classes=CLASSES)))
    checkpoint = tmp_path / "whole" / "every" / "epoch=0.ckpt"
    other = callback(BackwardCorrection(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"correction='ForwardCorrection'.*this one has correction='BackwardCorr"):
        run(tmp_path / "whole", ForeignClassifier(), other, ckpt_path=checkpoint)


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    every = ModelCheckpoint(tmp_path, filename="{epoch}")
    model = ours()
    model.correction.set_transition(torch.eye(CLASSES))
    trainer(tmp_path, [every], 1, enable_checkpointing=True).fit(model, Shuffled())
    with pytest.raises(ValueError, match="written without EstimateTransitionCallback"):
        run(tmp_path / "other", ours(), anchored(2), ckpt_path=tmp_path / "epoch=0.ckpt")


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    run(tmp_path / "whole", ours(), anchored(2))
    saved = tmp_path / "whole" / "every" / "epoch=0.ckpt"
    model = NoisyLabelClassifier(nn.Linear(5, 4), ForwardCorrection(num_classes=4))
    with pytest.raises(ValueError, match=r"correction.transition has shape \(3, 3\), but .* has \(4, 4\)"):
        run(tmp_path / "whole", model, anchored(2), ckpt_path=saved)
    weights = torch.load(saved, weights_only=True)["state_dict"]
    with pytest.raises(ValueError, match="the checkpoint's T is for 3 classes but this ForwardCorrection is for 4"):
        model.correction.load_state_dict({"transition": weights["correction.transition"]})


def test_a_foreign_checkpoint_of_other_classes_is_refused(tmp_path):
    def callback(classes):
        correction = ForwardCorrection(num_classes=classes)
        return anchored(2, monitor="val_acc", mode="max", correction=correction, loss_attribute="criterion")

    run(tmp_path / "whole", ForeignClassifier(), callback(CLASSES))
    other = ForeignClassifier()
    other.net[-1] = nn.Linear(other.net[-1].in_features, 4)
    with pytest.raises(ValueError, match=r"net.*weight has shape .*, but ForeignClassifier's has \(4,"):
        run(tmp_path / "whole", other, callback(4), ckpt_path=tmp_path / "whole" / "every" / "epoch=0.ckpt")
