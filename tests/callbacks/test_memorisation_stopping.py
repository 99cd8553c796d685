"""Where training accuracy passes what T allows, the fit stops, or its stage."""

from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from toy import (
    CLASSES,
    TRUE,
    ForeignClassifier,
    Indexed,
    Mixed,
    Networks,
    ToyData,
    adam,
    anchored,
    backbone,
    classifier,
    counted,
    trainer,
    weights,
)

from noisylightning import (
    EstimateTransitionCallback,
    ForwardCorrection,
    KnownTransitionCallback,
    MemorisationStopping,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.functional.memorisation import accuracy_ceiling

CEILING = float(accuracy_ceiling(TRUE, ToyData().train.tensors[1].bincount(minlength=CLASSES)))


class Told(NoisyLabelClassifier):
    """Logs the training accuracies that it is told, one an epoch, the last one ever after."""

    def __init__(self, *scores: float, correction=None) -> None:
        super().__init__(backbone(dropout=0.3), correction or ForwardCorrection(num_classes=CLASSES), optimizer=adam)
        self.scores = scores

    def on_train_epoch_end(self) -> None:
        self.log("train_accuracy", self.scores[min(self.current_epoch, len(self.scores) - 1)])


def fitted(folder, model, *callbacks, data=None, ckpt_path=None, **settings):
    run = trainer(folder, callbacks, **{"max_epochs": 5, **settings})
    torch.manual_seed(0)
    run.fit(model, data or ToyData(), ckpt_path=ckpt_path, weights_only=True)
    return run


@pytest.mark.parametrize(
    ("scores", "margin", "epochs"),
    [
        ((0.5, CEILING - 0.01, CEILING + 0.009, CEILING + 0.011), 0.01, 4),
        ((0.5, CEILING - 0.01, CEILING + 0.009, CEILING + 0.011), 0.0, 3),
        ((0.5, CEILING - 0.01), 0.0, 5),
        ((1.0,), 0.01, 1),
        ((float("nan"), 1.0), 0.01, 2),
    ],
)
def test_a_fit_stops_after_the_epoch_that_passes_ceiling_and_margin(tmp_path, scores, margin, epochs, caplog):
    caplog.set_level("INFO")
    run = fitted(tmp_path, Told(*scores), KnownTransitionCallback(), MemorisationStopping(margin))
    assert run.current_epoch == epochs
    assert ("the most that T allows" in caplog.text) == (epochs < 5)


def test_without_t_in_the_loss_it_is_given_one(tmp_path):
    model = Told(1.0, correction=NoCorrection(num_classes=CLASSES))
    assert fitted(tmp_path, model, MemorisationStopping(transition=TRUE)).current_epoch == 1


def test_stage_one_goes_on_and_stage_two_ends(tmp_path):
    callback = anchored(2)
    run = fitted(tmp_path, Told(1.0), callback, MemorisationStopping())
    assert (run.current_epoch, callback.stage) == (3, 2)


def test_with_a_t_given_stage_one_ends_and_t_is_estimated(tmp_path):
    callback = anchored(3)
    run = fitted(tmp_path, Told(1.0, 0.1), callback, MemorisationStopping(transition=TRUE))
    assert (run.current_epoch, callback.stage, callback.stage_one_epoch) == (5, 2, 0)


def test_networks_that_refine_t_train_as_long_as_without_it(tmp_path):
    def networks(*callbacks):
        seen = Networks()
        estimate = EstimateTransitionCallback(2, estimator=counted, predict=seen)
        fitted(tmp_path, Told(1.0), estimate, seen, *callbacks, data=Indexed(), max_epochs=4)
        return seen.names()

    whole, stopped = networks(), networks(MemorisationStopping())
    assert "refinement" in whole
    assert whole == [*stopped, "correction"]


def test_a_foreign_project_names_its_accuracy(tmp_path):
    class Foreign(ForeignClassifier):
        def on_train_epoch_end(self) -> None:
            self.log("train_acc", 1.0)

    callback = anchored(2, correction=ForwardCorrection(num_classes=3), loss_attribute="criterion", monitor="val_acc",
                        mode="max")  # fmt: skip
    assert fitted(tmp_path, Foreign(), callback, MemorisationStopping(monitor="train_acc")).current_epoch == 3


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_it_resumes_bit_for_bit(tmp_path):
    def run(ckpt_path=None):
        every = ModelCheckpoint(tmp_path / "every", filename="{epoch}", save_top_k=-1)
        model = Told(1.0, 1.0, 0.1, 1.0)
        callbacks = anchored(2), MemorisationStopping(), every
        fit = fitted(tmp_path, model, *callbacks, ckpt_path=ckpt_path, enable_checkpointing=True)
        return fit.current_epoch, weights(model)

    epochs, whole = run()
    assert epochs == 4
    for epoch in range(3):
        again, resumed = run(tmp_path / "every" / f"epoch={epoch}.ckpt")
        assert again == epochs
        assert torch.equal(resumed, whole)


def test_a_network_that_learns_labels_by_heart_is_stopped(tmp_path):
    """No scripted score: labels that say nothing of the inputs."""
    data = ToyData()
    generator = torch.Generator().manual_seed(0)
    data.train.tensors = (torch.randn(96, 5, generator=generator), torch.arange(96) % CLASSES)
    torch.manual_seed(0)  # of the weights that it is drawn with
    wide = torch.nn.Sequential(torch.nn.Linear(5, 256), torch.nn.ReLU(), torch.nn.Linear(256, CLASSES))
    even = torch.full((CLASSES, CLASSES), 0.25) + 0.25 * torch.eye(CLASSES)
    model = NoisyLabelClassifier(wide, ForwardCorrection(even), optimizer=partial(torch.optim.Adam, lr=0.05))
    run = fitted(tmp_path, model, MemorisationStopping(), data=data, max_epochs=100)
    assert run.current_epoch < 100
    assert run.callback_metrics["train_accuracy"] > 0.51
    assert run.callback_metrics["train_accuracy_ceiling"] == pytest.approx(0.5)
    assert run.callback_metrics["train_memorised"] > 0.02


@pytest.mark.parametrize(
    ("make", "model", "sentence"),
    [
        (partial(MemorisationStopping, 1.5), None, "margin must be a difference of accuracies"),
        (MemorisationStopping, lambda: Told(1.0, correction=NoCorrection(num_classes=3)), "finds no T in Told's loss"),
        (MemorisationStopping, lambda: classifier(correction=ForwardCorrection(Mixed())), "depends on the sample"),
        (
            partial(MemorisationStopping, monitor="train_acc"),
            lambda: classifier(correction=ForwardCorrection(TRUE)),
            "the module logged only .*train_accuracy",
        ),
        (
            partial(MemorisationStopping, monitor="test_accuracy"),
            lambda: classifier(correction=ForwardCorrection(TRUE)),
            "would choose by clean test data",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, make, model, sentence):
    with pytest.raises(ValueError, match=sentence):
        fitted(tmp_path, model and model(), make())
