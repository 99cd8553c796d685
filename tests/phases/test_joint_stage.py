"""Stage two on noisy and trusted samples together, within fits."""

import pytest
import torch
from joint_data import NOISE, Batches, Killed, OneCycle, TrustedApart, TrustedBlobs
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from toy import CLASSES, ForeignClassifier, ToyData, adam, backbone, classifier, counted, trainer, weights

from noisylightning import (
    AnchorEstimator,
    EstimateTransitionCallback,
    FineTuneOnTrusted,
    ForwardCorrection,
    KnownTransitionCallback,
    MemorisationStopping,
    Mixup,
    NoCorrection,
    NoisyLabelClassifier,
    TrustedDataEstimator,
)
from noisylightning.internals import before_training_steps
from noisylightning.phases import held_out_predictions

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:T-hat"),  # of so short a fit
    pytest.mark.filterwarnings("ignore:No T-hat foretells"),
]


def joint(stage_one_epochs=2, estimator=TrustedDataEstimator, **options):
    return EstimateTransitionCallback(stage_one_epochs, estimator=estimator, train_on_trusted=True, **options)


def fitted(folder, callbacks, data=None, model=None, max_epochs=4, ckpt_path=None, **options):
    model = classifier(dropout=0.3, optimizer=adam) if model is None else model
    run = trainer(folder, callbacks, max_epochs=max_epochs, **options)
    torch.manual_seed(0)
    run.fit(model, TrustedBlobs() if data is None else data, ckpt_path=ckpt_path, weights_only=True)
    return model, run


# --- what is trained on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TrustedBlobs, TrustedApart])
@pytest.mark.parametrize("reinit", ["initial", "keep"])
def test_stage_one_sees_noisy_samples_and_stage_two_each_of_both_once(tmp_path, make, reinit):
    batches, data = Batches(), make()
    fitted(tmp_path, [joint(reinit=reinit), batches], data)
    assert batches.joint_epochs() == [2, 3]
    places = 150 + torch.arange(6) if make is TrustedApart else data.trusted_index
    expected = [(place, True) for place in places.tolist()] + [(place, False) for place in data.train_index.tolist()]
    for epoch in (2, 3):
        assert sorted(batches.of_epoch(epoch)) == sorted(expected)
    assert batches.of_epoch(2) != batches.of_epoch(3)  # in another order
    mixed = [flags for epoch, _, flags in batches.seen if epoch > 1 and any(flags) and not all(flags)]
    assert len(mixed) > 4


def test_a_step_takes_the_mean_of_base_losses_and_corrected_ones(tmp_path):
    """The gradient of stage two's steps, with plain SGD, is that of the loss written out."""
    steps = []

    class Written(NoisyLabelClassifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if len(batch) == 4:
                p, (_, labels, _, trusted) = self(batch[0]).softmax(1), batch
                rows = torch.arange(len(labels))
                noisy = (p @ self.correction.transition)[rows, labels]
                values = -torch.where(trusted, p[rows, labels], noisy).log()
                steps.append((loss.detach(), values.mean().detach(), trusted.sum()))
            return loss

    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    model = Written(backbone(), ForwardCorrection(num_classes=CLASSES), optimizer=sgd)
    fitted(tmp_path, [joint()], model=model)
    got, expected, trusted = map(torch.stack, zip(*steps, strict=True))
    torch.testing.assert_close(got, expected)
    assert trusted.sum() == 2 * 12


def test_trusted_samples_carry_their_right_labels_and_the_others_theirs():
    data = TrustedBlobs()
    data.setup("fit")
    _, labels, index, trusted = (torch.cat(column) for column in zip(*data.joint_dataloader(), strict=True))
    clean, noisy = data.load_train()[1], data.noisy_labels.labels
    assert torch.equal(labels, torch.where(trusted, clean[index], noisy[index]))
    assert trusted.sum() == 12


@pytest.mark.parametrize("known", [False, True])
def test_the_schedule_spans_the_steps_that_there_are(tmp_path, known):
    """The last step has the least rate."""
    rates = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = OneCycle(backbone(), ForwardCorrection(num_classes=CLASSES))
    data = TrustedBlobs(trusted=10)  # 108 noisy samples make six batches, and seven with the trusted ones
    _, run = fitted(tmp_path, [KnownTransitionCallback(True) if known else joint(), Rates()], data, model)
    assert run.num_training_batches == 7
    assert len(rates) == (4 * 7 if known else 2 * 6 + 2 * 7)
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_refinement_trains_on_noisy_samples_and_stage_two_on_both(tmp_path):
    batches = Batches()
    callback = joint(estimator=counted)
    _, run = fitted(tmp_path, [callback, batches], TrustedBlobs(num=300))
    assert run.current_epoch > 4
    assert batches.joint_epochs() == [run.current_epoch - 2, run.current_epoch - 1]


def test_a_stage_one_counted_in_steps_ends_with_its_epoch(tmp_path):
    batches = Batches()
    callback = EstimateTransitionCallback(
        stage_one_steps=8, estimator=TrustedDataEstimator, estimate_from="last", train_on_trusted=True
    )
    fitted(tmp_path, [callback, batches])
    assert batches.joint_epochs() == [2, 3]
    assert callback.stage == 2


@pytest.mark.parametrize("first", [True, False])
def test_fine_tuning_on_trusted_samples_alone_follows(tmp_path, first):
    batches = Batches()
    callbacks = [joint(), FineTuneOnTrusted(4)]
    every = ModelCheckpoint(tmp_path / "every", filename="{epoch}", save_top_k=-1)
    order = callbacks if first else callbacks[::-1]
    whole, _ = fitted(tmp_path, [*order, batches, every], max_epochs=6, enable_checkpointing=True)
    assert batches.joint_epochs() == [2, 3]
    for epoch in (1, 2, 3, 4):
        again, rest = [joint(), FineTuneOnTrusted(4)], Batches()
        path = tmp_path / "every" / f"epoch={epoch}.ckpt"
        order = again if first else again[::-1]
        model, _ = fitted(tmp_path, [*order, rest], max_epochs=6, ckpt_path=path)
        assert rest.joint_epochs() == [at for at in (2, 3) if at > epoch]
        assert torch.equal(weights(model), weights(whole))


# --- with the true T --------------------------------------------------------------------------------------------------


def test_a_fit_with_the_true_t_trains_on_both_from_the_first_epoch(tmp_path):
    batches, data = Batches(), TrustedBlobs()
    every = ModelCheckpoint(tmp_path / "every", filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": 3, "enable_checkpointing": True}
    whole, _ = fitted(tmp_path, [KnownTransitionCallback(True), batches, every], data, **options)
    assert batches.joint_epochs() == [0, 1, 2]
    assert sorted(place for place, flag in batches.of_epoch(0) if flag) == data.trusted_index.tolist()
    checkpoint = tmp_path / "every" / "epoch=0.ckpt"
    again, _ = fitted(tmp_path, [KnownTransitionCallback(True), every], ckpt_path=checkpoint, **options)
    assert torch.equal(weights(again), weights(whole))
    with pytest.raises(ValueError, match=r"KnownTransitionCallback\(train_on_trusted=True\).*=False"):
        fitted(tmp_path, [KnownTransitionCallback(), every], ckpt_path=checkpoint, **options)


def test_networks_that_judge_held_out_labels_are_trained_without_trusted_samples(tmp_path):
    batches, data = Batches(), TrustedBlobs(with_index=True)
    run = trainer(tmp_path, [KnownTransitionCallback(train_on_trusted=True), batches])
    found = held_out_predictions(run, classifier(), data, folds=2, epochs=1)
    assert batches.joint_epochs() == []
    assert len(found) == 150 - 12


# --- killed and resumed -----------------------------------------------------------------------------------------------


def resumable(folder, refined, ckpt_path=None, dies_at=None):
    model, batches = OneCycle(backbone(dropout=0.3), ForwardCorrection(num_classes=CLASSES)), Batches(dies_at)
    callback = joint(estimator=counted if refined else TrustedDataEstimator)
    every = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1)
    data = TrustedBlobs(num=300) if refined else TrustedApart()
    run = trainer(folder, [callback, batches, every], enable_checkpointing=True)
    torch.manual_seed(0)
    run.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return model, run, batches


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    return folder, *resumable(folder, refined=False)


@pytest.mark.parametrize("refined", [False, True])
def test_every_epoch_end_resumes_bit_for_bit(finished, tmp_path, refined):
    folder, whole, run, batches = (tmp_path, *resumable(tmp_path, refined)) if refined else finished
    for epoch in range(run.current_epoch - 4, run.current_epoch - 1):
        model, _, rest = resumable(folder, refined, folder / "every" / f"epoch={epoch}.ckpt")
        assert rest.seen == [batch for batch in batches.seen if batch[0] > epoch]
        assert torch.equal(weights(model), weights(whole)), epoch
        assert torch.equal(model.correction.transition, whole.correction.transition)


@pytest.mark.parametrize("batch", [0, 3])
def test_a_fit_killed_within_an_epoch_goes_on_from_the_epoch_before(finished, tmp_path, batch):
    _, whole, *_ = finished
    with pytest.raises(Killed):
        resumable(tmp_path, refined=False, dies_at=(3, batch))
    model, *_ = resumable(tmp_path, False, tmp_path / "every" / "epoch=2.ckpt")
    assert torch.equal(weights(model), weights(whole))


def test_another_switch_is_refused_when_a_fit_resumes(finished):
    folder, *_ = finished
    without = EstimateTransitionCallback(2, estimator=TrustedDataEstimator)
    model = OneCycle(backbone(dropout=0.3), ForwardCorrection(num_classes=CLASSES))
    with pytest.raises(ValueError, match=r"train_on_trusted=True.*this one has train_on_trusted=False"):
        fitted(folder, [without], TrustedApart(), model, ckpt_path=folder / "every" / "epoch=0.ckpt")


# --- metrics and other callbacks --------------------------------------------------------------------------------------


def test_training_metrics_count_noisy_samples_alone(tmp_path):
    class Kept(NoisyLabelClassifier):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.kept.append((self(batch[0]), *batch))
            return super().training_step(batch, batch_idx)

    model = Kept(backbone(), ForwardCorrection(NOISE), optimizer=adam)
    model.kept = []
    _, run = fitted(tmp_path, [KnownTransitionCallback(True)], model=model, max_epochs=1)
    logits, _, labels, _, trusted = (torch.cat(column) for column in zip(*model.kept, strict=True))
    observed = (logits.softmax(1) @ NOISE).argmax(1)
    metrics = run.callback_metrics
    right = (observed == labels)[~trusted].float().mean()
    torch.testing.assert_close(metrics["train_accuracy"], right)
    values = model.correction.loss.values(model.correction.noisy_log_posterior(logits, trusted=trusted), labels)
    torch.testing.assert_close(metrics["train_loss"], values.mean(), atol=1e-5, rtol=0)
    shares = torch.linalg.solve(NOISE.T, labels[~trusted].bincount() / (~trusted).sum())
    torch.testing.assert_close(metrics["train_accuracy_ceiling"], (shares * NOISE.amax(1)).sum(), atol=1e-3, rtol=0)
    assert "train_memorised" in metrics
    assert "train_loss_floor" not in metrics  # of noisy samples alone, which train_loss is not


def test_memorisation_is_watched_on_noisy_samples(tmp_path):
    stop = MemorisationStopping(0.9)
    data = TrustedBlobs()
    fitted(tmp_path, [KnownTransitionCallback(True), stop], data, max_epochs=1)
    assert torch.equal(stop._counts, data.noisy_labels.labels[data.train_index].bincount())


def test_mixup_pairs_samples_of_a_kind(tmp_path):
    """A mixed label has two classes at most in the pair's kind; inputs are told apart by a column of the kind."""

    class Marked(TrustedBlobs):
        def joint_dataloader(self):
            loader = super().joint_dataloader()
            read = type(loader.dataset).__getitems__

            class Marking(type(loader.dataset)):
                def __getitems__(self, positions):
                    inputs, labels, index, trusted = read(self, positions)
                    inputs[:, -1] = trusted.float()
                    return inputs, labels, index, trusted

            loader.dataset.__class__ = Marking
            return loader

    seen = []
    model = classifier()
    mixup = Mixup(seed=1)
    mixup.on_train_start = lambda trainer, module, start=mixup.on_train_start: (
        start(trainer, module),
        before_training_steps(module, lambda batch: seen.append(batch) or batch),
    )
    fitted(tmp_path, [KnownTransitionCallback(True), mixup], Marked(), model, max_epochs=2)
    assert all(torch.equal(batch[0][:, -1], batch[3].float()) for batch in seen)
    assert all(batch[1].is_floating_point() for batch in seen)
    assert len(seen) == 14


# --- what cannot work -------------------------------------------------------------------------------------------------


class Untold(NoisyLabelClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:3], batch_idx)


class WithoutFlags(ToyData):
    def joint_dataloader(self):
        return self.train_dataloader()


class Odd(TrustedBlobs):
    """Its trusted samples have another number of features."""

    def __init__(self) -> None:
        super().__init__(trusted=None)

    def load_trusted(self):
        return torch.zeros(3, 2), torch.arange(3)


class Hooked(ForeignClassifier):
    num_classes = CLASSES

    def on_transition_estimated(self, transition):
        pass


def untold():
    return Untold(backbone(), ForwardCorrection(num_classes=CLASSES))


def none_trusted():
    return TrustedBlobs(trusted=None)


def anchored_joint():
    return joint(estimator=AnchorEstimator)


def known():
    return KnownTransitionCallback(train_on_trusted=True)


@pytest.mark.parametrize(
    ("make", "model", "data", "message"),
    [
        (anchored_joint, classifier, none_trusted, r"has no trusted samples: give trusted \(--data.trusted\)"),
        (known, classifier, none_trusted, r"has no trusted samples: give trusted \(--data.trusted\)"),
        (anchored_joint, classifier, ToyData, r"needs a data module with joint_dataloader\(\)"),
        (known, classifier, ToyData, r"needs a data module with joint_dataloader\(\)"),
        (lambda: joint(monitor="val_acc", mode="max"), Hooked, TrustedBlobs,
         "needs a correction with a T at Hooked.correction"),
        (known, lambda: classifier(correction=NoCorrection(CLASSES)), TrustedBlobs, "needs a correction with a T"),
        (anchored_joint, classifier, WithoutFlags, r"joint_dataloader\(\) gives no batches \(inputs, labels, index,"),
        (anchored_joint, untold, TrustedBlobs, "training_step does not tell its correction which samples are trusted"),
        (known, untold, TrustedBlobs, "training_step does not tell its correction which samples are trusted"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_sentence(tmp_path, make, model, data, message):
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, [make()], data(), model())


def test_trusted_samples_of_another_form_are_refused():
    data = Odd()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"of shape \(5,\), trusted ones of \(2,\)"):
        list(data.joint_dataloader())


def test_a_loader_of_both_trains_without_a_callback(tmp_path):
    data = TrustedBlobs()
    data.setup("fit")
    model = classifier(correction=ForwardCorrection(NOISE))
    trainer(tmp_path, max_epochs=1).fit(model, data.joint_dataloader(), data.val_dataloader())


def test_a_foreign_data_module_may_have_one(tmp_path):
    class Foreign(ToyData):
        def joint_dataloader(self):
            inputs, labels = self.train.tensors
            index = torch.arange(len(labels))
            return DataLoader(TensorDataset(inputs, labels, index, index < 9), batch_size=16)

    batches = Batches()
    fitted(tmp_path, [anchored_joint(), batches], Foreign())
    assert batches.joint_epochs() == [2, 3]
