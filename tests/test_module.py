"""NoisyLabelClassifier: what it logs, predicts, saves and refuses."""

from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy import (
    CLASSES,
    FEATURES,
    TRUE,
    Counted,
    ForeignClassifier,
    Mixed,
    OfEachSample,
    ToyData,
    adam,
    anchored,
    backbone,
    classifier,
    clean_accuracy_by_hand,
    trainer,
    uncorrected,
)

from noisylightning import (
    BackwardCorrection,
    FineTuneOnTrusted,
    ForwardCorrection,
    KnownTransitionCallback,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.functional import clean_log_posterior, clean_priors
from noisylightning.internals import is_of_test_data
from noisylightning.metrics.noisy import NoisyMetrics
from noisylightning.results import evaluate_fit
from noisylightning.transition import SymmetricTransition, Transition


def test_metrics_agree_with_a_count_by_hand(tmp_path):
    """Validation judges the noisy prediction, argmax of p T; the test judges p(clean | x) on clean labels."""
    data, model = ToyData(), classifier(correction=ForwardCorrection(TRUE))
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data)
    model.eval()
    with torch.no_grad():
        logits = model(data.val.tensors[0])
        noisy = data.val.tensors[1]
        posterior = logits.softmax(dim=1) @ TRUE
        val_accuracy = (posterior.argmax(dim=1) == noisy).float().mean()
        val_loss = nn.functional.nll_loss(posterior.log(), noisy)
        clean = data.test.tensors[1]
        correct = logits.argmax(dim=1) == clean
        balanced = torch.stack([correct[clean == i].float().mean() for i in range(CLASSES)]).mean()
    measured = run.validate(model, data, verbose=False)[0] | run.test(model, data, verbose=False)[0]
    expected = {
        "val_accuracy": val_accuracy,
        "val_loss": val_loss,
        "test_accuracy": correct.float().mean(),
        "test_balanced_accuracy": balanced,
        "test_loss": nn.functional.cross_entropy(logits, clean),
        **clean_accuracy_by_hand(logits, noisy, TRUE),
    }
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(float(value), abs=1e-5), name


def clean_names(metrics):
    return {name for name in metrics if "clean" in name}


@pytest.mark.parametrize(
    ("correction", "known"),
    [
        (NoCorrection(num_classes=CLASSES), None),
        (ForwardCorrection(torch.eye(CLASSES)), False),
        (ForwardCorrection(torch.full((CLASSES, CLASSES), 1 / CLASSES)), False),
        (ForwardCorrection(Mixed()), False),
        (ForwardCorrection(SymmetricTransition(CLASSES, 0.2)), True),
    ],
    ids=["none", "identity", "singular", "of the sample", "structured"],
)
def test_accuracy_on_clean_labels_is_logged_where_a_class_conditional_t_is_known(tmp_path, correction, known):
    """Else callbacks find that it is not a number, loggers nothing, and without any T nobody finds anything."""
    run = trainer(tmp_path, [], logger=CSVLogger(tmp_path), max_epochs=1, log_every_n_steps=1)
    run.fit(classifier(correction=correction), ToyData())
    names = {f"val_clean_accuracy{bound}" for bound in ("", "_low", "_high")}
    assert clean_names(run.callback_metrics) == (set() if known is None else names)
    assert clean_names(run.logged_metrics) == (names if known else set())
    assert all(bool(run.callback_metrics[name].isfinite()) == known for name in clean_names(run.callback_metrics))


def test_soft_labels_say_nothing_of_clean_accuracy(tmp_path):
    class Soft(ToyData):
        def val_dataloader(self):
            inputs, labels = self.val.tensors
            return DataLoader(TensorDataset(inputs, nn.functional.one_hot(labels, CLASSES).float()), batch_size=16)

    run = trainer(tmp_path, max_epochs=1)
    run.fit(classifier(correction=ForwardCorrection(TRUE)), Soft())
    assert run.callback_metrics["val_accuracy"] > 0
    assert run.callback_metrics["val_clean_accuracy"].isnan()


def test_its_interval_knows_the_standard_errors_of_an_estimate_and_a_checkpoint_may_monitor_it(tmp_path):
    callback = anchored(1, estimator=partial(Counted, replicates=20))
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_clean_accuracy", mode="max")
    run = trainer(tmp_path, [callback, checkpoint], max_epochs=3, enable_checkpointing=True)
    model, data = classifier(), ToyData()
    run.fit(model, data)
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    assert best["epoch"] >= 1  # stage one has none
    measured = {name: float(run.callback_metrics[name]) for name in clean_names(run.callback_metrics)}
    assert float(checkpoint.best_model_score) >= measured["val_clean_accuracy"]
    inputs, noisy = data.val.tensors
    alone = clean_accuracy_by_hand(model.eval()(inputs).detach(), noisy, callback.transition)
    assert measured["val_clean_accuracy"] == pytest.approx(alone["val_clean_accuracy"], abs=1e-5)
    assert measured["val_clean_accuracy_low"] < alone["val_clean_accuracy_low"] - 1e-3
    first, *_, chosen = evaluate_fit(run, model, data)
    assert (chosen.selected_by, chosen.clean_accuracy) == ("val_clean_accuracy", float(checkpoint.best_model_score))
    assert first.phase == "noisy labels"
    assert first.clean_accuracy_low < first.clean_accuracy < first.clean_accuracy_high  # by T-hat, of the fit's end


@pytest.mark.parametrize("enough", [1, 40, 10**9])
def test_training_metrics_do_not_depend_on_how_many_batches_are_measured_at_once(tmp_path, monkeypatch, enough):
    monkeypatch.setattr(NoisyMetrics, "ENOUGH", enough)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(uncorrected(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)), ToyData(num_train=88))
    inputs, labels = ToyData(num_train=88).train.tensors
    logits = backbone()(inputs).detach()
    accuracy = (logits.argmax(dim=1) == labels).float().mean()
    assert float(run.callback_metrics["train_accuracy"]) == pytest.approx(float(accuracy), abs=1e-6)
    loss = nn.functional.cross_entropy(logits, labels)
    assert float(run.callback_metrics["train_loss"]) == pytest.approx(float(loss), abs=1e-5)


def test_a_new_architecture_is_one_method():
    class Wide(NoisyLabelClassifier):
        def build_backbone(self):
            return nn.Linear(FEATURES, self.num_classes)

    assert Wide(num_classes=4)(torch.zeros(2, FEATURES)).shape == (2, 4)


def test_a_subclass_with_arguments_of_its_own_loads_from_its_checkpoint(tmp_path):
    class Deep(NoisyLabelClassifier):
        def __init__(self, width: int, **kwargs):
            super().__init__(nn.Sequential(nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)), **kwargs)

    checkpoint = ModelCheckpoint(tmp_path)
    model = Deep(width=7, num_classes=CLASSES)
    trainer(tmp_path, [checkpoint], max_epochs=1, enable_checkpointing=True).fit(model, ToyData())
    again = Deep.load_from_checkpoint(checkpoint.best_model_path, weights_only=True)
    inputs = torch.randn(4, FEATURES)
    assert torch.equal(again(inputs), model(inputs))


def test_a_checkpoint_loads_with_the_objects_it_leaves_out(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    model = classifier(correction=ForwardCorrection(TRUE))
    trainer(tmp_path, [checkpoint], max_epochs=1, enable_checkpointing=True).fit(model, ToyData())
    again = NoisyLabelClassifier.load_from_checkpoint(
        checkpoint.best_model_path, weights_only=True, backbone=backbone(seed=3), correction=ForwardCorrection()
    )
    assert again.num_classes == CLASSES
    assert torch.equal(again.correction.transition, TRUE)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("plateau", [False, True])
def test_schedules_are_stepped_once_an_epoch(tmp_path, plateau):
    if plateau:
        schedule = lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val_loss", factor=0.5)  # noqa: E731
    else:
        schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # noqa: E731
    run = trainer(tmp_path, max_epochs=3)
    run.fit(uncorrected(optimizer=adam, lr_scheduler=schedule), ToyData())
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.02 if plateau else 0.02 / 8)


def test_index_reaches_the_losses_that_ask_for_it(tmp_path):
    seen = []

    class Indexed(NoCorrection):
        def forward(self, logits, target, index=None):
            seen.append(index)
            return super().forward(logits, target)

    model = classifier(correction=Indexed(num_classes=CLASSES))
    batch = torch.randn(4, FEATURES), torch.zeros(4, dtype=torch.long), torch.arange(4)
    model.training_step(batch, 0)
    assert torch.equal(seen[0], torch.arange(4))


def test_a_correction_that_nobody_gives_a_transition_is_refused(tmp_path):
    """Else it would train as cross-entropy under the correction's name."""

    class Gives(Callback):
        provides_transition = True

    for callbacks in ([], [FineTuneOnTrusted(1)]):
        data = ToyData()
        data.trusted_train_dataloader = data.train_dataloader
        with pytest.raises(RuntimeError, match=r"ForwardCorrection was given no T.*transition=.*Callback"):
            trainer(tmp_path, callbacks, max_epochs=2).fit(classifier(), data)
    for callbacks in ([Gives()], [KnownTransitionCallback()], [anchored(1)]):
        trainer(tmp_path, callbacks, max_epochs=2, limit_train_batches=1).fit(classifier(), ToyData())
    for correction in (ForwardCorrection(TRUE), NoCorrection()):
        model = NoisyLabelClassifier(backbone(), correction, CLASSES)
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(model, ToyData())


class Learnt(Transition):
    """T as the row softmax of a parameter."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.scores = nn.Parameter(4 * torch.eye(CLASSES))

    def to_dense(self):
        return self.scores.softmax(dim=1)


def test_a_learnt_transition_is_trained_in_a_group_of_its_own(tmp_path):
    """One automatic optimization: its own rate, no weight decay, every parameter once."""
    correction = ForwardCorrection(Learnt())
    model = classifier(
        correction=correction,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.5),
        transition_lr=0.1,
    )
    before = correction.T.scores.detach().clone()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, ToyData())
    network, learnt = run.optimizers[0].param_groups
    assert [(group["lr"], group["weight_decay"]) for group in (network, learnt)] == [(0.02, 0.5), (0.1, 0.0)]
    assert learnt["params"] == [correction.T.scores]
    grouped = {id(parameter) for group in (network, learnt) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters()}
    assert len(network["params"]) + len(learnt["params"]) == len(grouped)
    assert not torch.equal(correction.T.scores, before)


def test_without_a_rate_of_its_own_a_learnt_transition_has_the_optimizers():
    model = classifier(correction=ForwardCorrection(Learnt()))
    assert [group["lr"] for group in model.configure_optimizers().param_groups] == [0.02, 0.02]


def test_a_fixed_transition_changes_nothing_for_the_optimizer():
    """It gets the parameters themselves, as any optimizer's factory expects them."""
    seen = []
    model = classifier(optimizer=lambda parameters: seen.extend(parameters) or torch.optim.SGD(seen, lr=0.1))
    assert len(model.configure_optimizers().param_groups) == 1
    assert all(isinstance(parameter, nn.Parameter) for parameter in seen)
    assert len(model.parameter_groups()) == 1
    frozen = ForwardCorrection(Learnt())
    frozen.T.scores.requires_grad_(False)
    assert len(classifier(correction=frozen).parameter_groups()) == 1


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_fit_without_phases_resumes_bit_for_bit(tmp_path):
    """Each epoch's draws, here dropout and the order of the samples, come from the fit's seed and the epoch."""

    class Shuffled(ToyData):
        def train_dataloader(self):
            return DataLoader(self.train, batch_size=16, shuffle=True)

    def fit(**options):
        model = classifier(dropout=0.3, correction=NoCorrection(num_classes=CLASSES))
        every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, [every], max_epochs=4, enable_checkpointing=True).fit(
            model, Shuffled(), weights_only=True, **options
        )
        return model.state_dict()

    whole = fit()
    for epoch in range(3):
        torch.manual_seed(123)  # what a new process happens to draw from
        resumed = fit(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_prediction_takes_inputs_with_and_without_labels():
    model = classifier().eval()
    inputs = torch.randn(4, FEATURES)
    expected = model(inputs).softmax(dim=1)
    assert torch.equal(model.predict_step(inputs, 0), expected)
    assert torch.equal(model.predict_step((inputs, torch.zeros(4)), 0), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 3}, TypeError, "has no network: pass backbone="),
        ({"backbone": nn.Linear(2, 3)}, ValueError, "does not know the number of classes"),
        (
            {"backbone": nn.Linear(2, 3), "num_classes": 3, "correction": ForwardCorrection(num_classes=4)},
            ValueError,
            "for 4 classes but 3",
        ),
        ({"backbone": nn.Linear(2, 3), "num_classes": 3, "transition_lr": 0.0}, ValueError, "must be positive, got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        NoisyLabelClassifier(**arguments)


@pytest.mark.parametrize(
    ("labels", "error"), [(torch.tensor([0, 3]), ValueError), (torch.tensor([[0.5, 0.2], [0.0, 1.0]]), ValueError)]
)
def test_labels_that_are_none_are_refused(labels, error):
    with pytest.raises(error):
        classifier().training_step((torch.randn(2, FEATURES), labels), 0)


def test_a_network_that_ends_in_a_softmax_is_refused_before_the_first_step(tmp_path):
    """Also where no callback would try it; once it has trained, nobody looks again."""
    for sanity in (0, 2):
        run, model = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=sanity), uncorrected()
        model.backbone.append(nn.Softmax(dim=1))
        with pytest.raises(ValueError, match=r"outputs are probabilities.*drop the network's final softmax"):
            run.fit(model, ToyData())
        assert run.global_step == 0
    zero = uncorrected()
    nn.init.zeros_(zero.backbone[-1].weight)
    nn.init.zeros_(zero.backbone[-1].bias)
    trainer(tmp_path, max_epochs=1).fit(zero, ToyData())


def test_a_transition_may_be_known_of_each_sample_by_its_index():
    """The index reaches T in the loss and in the accuracy of the noisy prediction."""

    class Listed(Transition):
        def at(self, features, index):
            return OfEachSample(matrices[index])

        def to_dense(self):
            return matrices.mean(dim=0)

    matrices = torch.rand(9, CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    model = classifier(correction=ForwardCorrection(Listed(CLASSES)))
    inputs, labels = ToyData().train.tensors
    places = torch.tensor([[8, 1, 0], [3, 5, 5]])
    for index in places:
        model.validation_step((inputs[index], labels[index], index), 0)
    model.val_metrics.measure()
    whole = places.flatten()
    posterior = OfEachSample(matrices[whole]).posterior(model(inputs[whole]))
    correct = (posterior.argmax(dim=1) == labels[whole]).float().mean()
    assert float(model.val_metrics.accuracy.compute()) == pytest.approx(float(correct))
    assert float(model.val_metrics.loss.compute()) == pytest.approx(
        float(nn.functional.nll_loss(posterior.detach().log(), labels[whole]))
    )


def test_a_transition_of_the_sample_trains_with_the_network(tmp_path):
    """Its loss, and the accuracies that go through it, are those computed by hand from one forward pass."""
    model, data = classifier(correction=ForwardCorrection(Mixed()), transition_lr=0.1), ToyData()
    transition, passes = model.correction.T, []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))

    def by_hand(inputs, labels):
        features = model.backbone[:3](inputs)
        posterior = torch.stack(
            [
                p @ (share * TRUE + (1 - share) / CLASSES)
                for p, share in zip(
                    model.backbone[3](features).softmax(dim=1),
                    transition.scores(features).sigmoid(),
                    strict=True,
                )
            ]
        )
        accuracy = (posterior.argmax(dim=1) == labels).float().mean()
        return nn.functional.nll_loss(posterior.log(), labels), accuracy

    batch = data.train.tensors[0][:16], data.train.tensors[1][:16]
    loss = model.training_step(batch, 0)
    assert len(passes) == 1
    model.train_metrics.measure()
    expected, accuracy = by_hand(*batch)
    torch.testing.assert_close(loss, expected)
    assert float(model.train_metrics.accuracy.compute()) == pytest.approx(float(accuracy))
    model.train_metrics.accuracy.reset()
    loss.backward()
    assert float(transition.scores.weight.grad.abs().sum()) > 0

    before = transition.scores.weight.detach().clone()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, data)
    network, learnt = run.optimizers[0].param_groups
    assert {id(parameter) for parameter in learnt["params"]} == {id(p) for p in transition.parameters()}
    assert (network["lr"], learnt["lr"]) == (0.02, 0.1)
    assert not torch.equal(transition.scores.weight, before)
    with torch.no_grad():
        loss, accuracy = by_hand(*data.val.tensors)
    measured = run.validate(model, data, verbose=False)[0]
    assert measured["val_loss"] == pytest.approx(float(loss), abs=1e-5)
    assert measured["val_accuracy"] == pytest.approx(float(accuracy), abs=1e-5)
    assert evaluate_fit(run, model, data)[-1].val_accuracy == pytest.approx(float(accuracy), abs=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


# Memorisation


def fit_that_stands_still(folder, correction):
    """Its weights stay, so that the training metrics are of one network."""
    data, model = ToyData(num_train=97), classifier(correction=correction, optimizer=still)
    run = trainer(folder, max_epochs=1)
    run.fit(model, data)
    return model, data, run.callback_metrics


def still(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def test_memorisation_agrees_with_a_count_by_hand(tmp_path):
    model, data, logged = fit_that_stands_still(tmp_path, ForwardCorrection(TRUE))
    inputs, labels = data.train.tensors
    with torch.no_grad():
        posterior = clean_log_posterior(model(inputs).double(), labels, TRUE).exp()
    priors = clean_priors(TRUE, labels.bincount())
    wrong = 1 - posterior[torch.arange(97), labels]
    memorised = 1 - wrong.sum() / (97 * (priors * (1 - TRUE.diagonal())).sum())
    entropy = -torch.special.xlogy(TRUE, TRUE).sum(dim=1)
    assert float(logged["train_memorised"]) == pytest.approx(float(memorised), abs=1e-5)
    assert float(logged["train_accuracy_ceiling"]) == pytest.approx(float(priors @ TRUE.double().amax(dim=1)))
    assert float(logged["train_loss_floor"]) == pytest.approx(float(priors @ entropy.double()))


@pytest.mark.parametrize(
    ("correction", "logged"),
    [
        (NoCorrection(num_classes=CLASSES), set()),
        (ForwardCorrection(torch.eye(CLASSES)), set()),
        (ForwardCorrection(Mixed()), set()),
        (BackwardCorrection(TRUE), {"train_memorised", "train_accuracy_ceiling"}),
    ],
    ids=["no correction", "identity", "of the sample", "backward"],
)
def test_memorisation_is_logged_where_one_t_says_it(tmp_path, correction, logged):
    named = {"train_memorised", "train_accuracy_ceiling", "train_loss_floor"}
    assert named & fit_that_stands_still(tmp_path, correction)[2].keys() == logged


# Clean test data


@pytest.mark.parametrize("monitor", ["test_accuracy", "test_loss", "noisy_labels_best/test_accuracy", "test"])
def test_a_fit_does_not_choose_by_clean_test_data(tmp_path, monitor):
    run = trainer(tmp_path, [ModelCheckpoint(monitor=monitor)], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"ModelCheckpoint\(monitor=.*would choose by clean test data"):
        run.fit(uncorrected(), ToyData())
    assert run.global_step == 0


def test_a_schedule_does_not_choose_by_clean_test_data(tmp_path):
    model = uncorrected(lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, monitor="test_loss"))
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau\(monitor='test_loss'\)"):
        trainer(tmp_path).fit(model, ToyData())


def test_a_foreign_fit_in_two_stages_does_not_choose_by_clean_test_data(tmp_path):
    callback = anchored(2, correction=ForwardCorrection(num_classes=3), loss_attribute="criterion", monitor="test_acc",
                        mode="max")  # fmt: skip
    with pytest.raises(ValueError, match="would choose by clean test data"):
        trainer(tmp_path, [callback]).fit(ForeignClassifier(), ToyData())


@pytest.mark.parametrize("monitor", ["val_loss", "latest_loss", "val_test_time_accuracy", "train_test_gap", "contest"])
def test_other_names_are_left_alone(monitor):
    assert not is_of_test_data(monitor)
