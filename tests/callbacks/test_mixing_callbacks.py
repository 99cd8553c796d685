"""Mixup and CutMix within fits: what is mixed, when, and that a fit resumes."""

from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy import (
    CLASSES,
    FEATURES,
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
    CutMix,
    EstimateTransitionCallback,
    ForwardCorrection,
    MemorisationStopping,
    Mixup,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.losses import EarlyLearningRegularization


class Seen(NoisyLabelClassifier):
    """Keeps each batch that a training step gets, and the one that it was made of."""

    def __init__(self, backbone, correction=None) -> None:
        super().__init__(backbone, correction or ForwardCorrection(num_classes=CLASSES), optimizer=adam)
        self.steps: list[tuple[int, tuple, tuple]] = []
        self._whole = ()

    def on_train_batch_start(self, batch, batch_idx):
        self._whole = batch

    def training_step(self, batch, batch_idx):
        self.steps.append((self.current_epoch, batch, self._whole))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        assert not batch[1].is_floating_point()
        super().validation_step(batch, batch_idx)


def fitted(folder, model, *callbacks, data=None, ckpt_path=None, **settings):
    run = trainer(folder, callbacks, **{"max_epochs": 4, **settings})
    torch.manual_seed(0)
    run.fit(model, data or ToyData(), ckpt_path=ckpt_path, weights_only=True)
    return run


def mixed_epochs(model) -> set[int]:
    return {epoch for epoch, batch, _ in model.steps if batch[1].is_floating_point()}


def test_a_batch_is_mixed_with_itself_and_its_labels_alike(tmp_path):
    """The partners and the share are read off the inputs; the labels must be those of the same mixture."""
    model = Seen(backbone(), ForwardCorrection(TRUE))
    fitted(tmp_path, model, Mixup(alpha=2.0), max_epochs=2)
    shares = []
    for _, (mixed, soft), (inputs, labels) in model.steps:
        one_hot = torch.eye(CLASSES)[labels]
        ways = inputs[None] - inputs[:, None]  # from sample i to each sample j
        steps = ((mixed - inputs)[:, None] * ways).sum(2) / ways.square().sum(2).clamp_min(1e-9)
        misses = (inputs[:, None] + steps[:, :, None] * ways - mixed[:, None]).norm(dim=2)
        partners = misses.argmin(dim=1)
        rows = torch.arange(len(inputs))
        assert misses[rows, partners].max() < 1e-4
        partners = torch.where((mixed - inputs).norm(dim=1) < 1e-5, rows, partners)  # paired with itself
        moved = steps[rows, partners][partners != rows]
        share = 1 - float(moved.median())
        torch.testing.assert_close(moved, torch.full_like(moved, 1 - share), atol=1e-3, rtol=0)
        torch.testing.assert_close(soft, share * one_hot + (1 - share) * one_hot[partners], atol=1e-3, rtol=0)
        shares.append(share)
    assert len({round(share, 4) for share in shares}) == len(model.steps) == 12
    assert 0.2 < sum(shares) / 12 < 0.8


@pytest.mark.parametrize("stage_one", [False, True])
def test_it_mixes_from_the_estimate_on_or_in_all_networks_but_never_predictions(tmp_path, stage_one):
    seen, model = Networks(), Seen(backbone())
    callback = EstimateTransitionCallback(2, estimator=counted, predict=seen)
    data = Indexed()
    fitted(tmp_path, model, callback, seen, Mixup(stage_one=stage_one), data=data)
    names = {epoch: name for epoch, (name, *_) in enumerate(seen.epochs)}
    assert {"noisy labels", "folds", "refinement", "correction"} == set(names.values())
    mixing = {epoch for epoch, name in names.items() if stage_one or name == "correction"}
    assert mixed_epochs(model) == mixing
    for _, (inputs, _, index), whole in model.steps:
        assert torch.equal(index, whole[2])
        assert torch.equal(data.train.tensors[0][index], whole[0])
        assert torch.equal(inputs, whole[0]) == (inputs is whole[0])


def test_a_fit_without_phases_is_mixed_as_often_as_asked_and_measured(tmp_path):
    model = Seen(backbone(), ForwardCorrection(TRUE))
    run = fitted(tmp_path, model, Mixup(probability=0.4), data=ToyData(480), max_epochs=3)
    mixed = [batch[1].is_floating_point() for _, batch, _ in model.steps]
    assert 0.25 < sum(mixed) / len(mixed) < 0.55
    assert {"train_loss", "train_accuracy", "train_memorised"} <= run.callback_metrics.keys()  # of the others
    again = Seen(backbone(), ForwardCorrection(TRUE))
    run = fitted(tmp_path, again, Mixup())
    assert "train_memorised" not in run.callback_metrics
    assert {"train_loss", "train_accuracy"} <= run.callback_metrics.keys()


def test_cutmix_pastes_what_the_labels_say(tmp_path):
    data = ToyData()
    images = torch.arange(96.0)[:, None, None, None].expand(96, 1, 6, 6).contiguous()
    data.train = TensorDataset(images, data.train.tensors[1])
    data.val = TensorDataset(torch.zeros(48, 1, 6, 6), data.val.tensors[1])
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))
    model = Seen(network, NoCorrection(num_classes=CLASSES))
    fitted(tmp_path, model, CutMix(), data=data, max_epochs=1)
    for _, (mixed, soft), (whole, labels) in model.steps:
        for image, label, number, own in zip(mixed, soft, whole[:, 0, 0, 0], labels, strict=True):
            pasted = image[image != number]
            assert len(pasted.unique()) <= 1  # one partner
            expected = torch.eye(CLASSES)[own] * (1 - len(pasted) / 36)
            other = data.train.tensors[1][int(pasted[0])] if len(pasted) else own  # paired with itself
            expected = expected + torch.eye(CLASSES)[other] * (len(pasted) / 36)
            torch.testing.assert_close(label, expected)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_it_resumes_bit_for_bit(tmp_path):
    def run(ckpt_path=None):
        every = ModelCheckpoint(tmp_path / "every", filename="{epoch}", save_top_k=-1)
        model = NoisyLabelClassifier(backbone(dropout=0.3), ForwardCorrection(num_classes=CLASSES), optimizer=adam)
        fitted(tmp_path, model, Mixup(0.4), anchored(2), every, ckpt_path=ckpt_path, enable_checkpointing=True)
        return weights(model)

    whole = run()
    assert whole.isfinite().all()
    for epoch in (1, 2):
        assert torch.equal(run(tmp_path / "every" / f"epoch={epoch}.ckpt"), whole)
    callbacks = Mixup(), anchored(2), ModelCheckpoint(tmp_path, save_top_k=-1)
    with pytest.raises(ValueError, match=r"written with Mixup\(alpha=0.4\), but this one has alpha=1.0"):
        fitted(tmp_path, classifier(), *callbacks, ckpt_path=tmp_path / "every" / "epoch=2.ckpt",
               enable_checkpointing=True)  # fmt: skip


def test_a_stage_that_begins_within_an_epoch_is_mixed_from_there(tmp_path):
    model = Seen(backbone())
    fitted(tmp_path, model, Mixup(), anchored(stage_one_steps=8, estimate_from="last"))
    assert [batch[1].is_floating_point() for _, batch, _ in model.steps] == [False] * 8 + [True] * 16


def test_a_foreign_module_is_mixed_and_left_as_it_was(tmp_path):
    model = ForeignClassifier()
    callback = anchored(2, correction=ForwardCorrection(num_classes=CLASSES), loss_attribute="criterion",
                        monitor="val_acc", mode="max")  # fmt: skip
    fitted(tmp_path, model, Mixup(), callback)
    assert "training_step" not in vars(model)
    model.net[0].weight.data[:] = float("nan")
    model.net[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(tmp_path, model, Mixup())
    assert "training_step" not in vars(model)


def labelled(labels, inputs=None):
    data = ToyData()
    data.train = TensorDataset(data.train.tensors[0] if inputs is None else inputs, labels)
    return data


def remembering():
    return NoCorrection(num_classes=CLASSES, loss=EarlyLearningRegularization(96, CLASSES))


class Pairs(ToyData):
    def train_dataloader(self):
        return DataLoader([({"x": torch.zeros(FEATURES)}, 0)], batch_size=1)


@pytest.mark.parametrize(
    ("make", "correction", "data", "sentence"),
    [
        (partial(Mixup, 0.0), lambda: ForwardCorrection(TRUE), None, "Mixup's alpha must be positive and finite"),
        (
            partial(CutMix, probability=1.5),
            lambda: ForwardCorrection(TRUE),
            None,
            r"CutMix's probability must lie in \(0, 1\]",
        ),
        (Mixup, remembering, None, "EarlyLearningRegularization remembers what the network says"),
        (Mixup, lambda: ForwardCorrection(Mixed()), None, "Mixed is another T for each sample"),
        (CutMix, lambda: ForwardCorrection(TRUE), None, "use Mixup"),
        (Mixup, lambda: ForwardCorrection(TRUE), lambda: labelled(torch.full((96,), -100)), "met the label -100"),
        (
            Mixup,
            lambda: ForwardCorrection(TRUE),
            lambda: labelled(torch.zeros(96).long(), torch.zeros(96, FEATURES).long()),
            "cannot mix inputs of torch.int64",
        ),
        (Mixup, lambda: ForwardCorrection(TRUE), Pairs, r"mixes batches \(inputs, labels\) of tensors"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_a_sentence(tmp_path, make, correction, data, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        fitted(tmp_path, classifier(correction=correction()), make(), data=data and data())


def test_what_stage_two_could_not_mix_is_refused_before_the_first_step(tmp_path):
    run = trainer(tmp_path, [anchored(2), CutMix()])
    with pytest.raises(ValueError, match="use Mixup"):
        run.fit(classifier(), ToyData())
    assert run.global_step == 0


@pytest.mark.parametrize(
    ("peer", "sentence"),
    [(CutMix, "would mix the same batches"), (MemorisationStopping, "MemorisationStopping watches the accuracy")],
)
def test_callbacks_that_do_not_go_with_it_are_refused_in_a_sentence(tmp_path, peer, sentence):
    with pytest.raises(ValueError, match=sentence):
        fitted(tmp_path, classifier(correction=ForwardCorrection(TRUE)), Mixup(), peer())
