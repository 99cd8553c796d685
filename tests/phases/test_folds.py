"""Parts of the data that networks leave out: what they train on, what they predict, how long the fit becomes."""

import math
from itertools import chain

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from toy import (
    CLASSES,
    TRUE,
    ForeignClassifier,
    Indexed,
    Networks,
    ToyData,
    classifier,
    counted,
    trainer,
    weights,
)

from noisylightning import (
    AnchorEstimator,
    ConfidentJointEstimator,
    EstimateTransitionCallback,
    FineTuneOnTrusted,
    ForwardCorrection,
)
from noisylightning.data import ArrayDataModule, TransitionNoise
from noisylightning.functional.bootstrap import part_of
from noisylightning.phases import Plan
from noisylightning.predictions import Predictions


def ours() -> ArrayDataModule:
    clean = torch.arange(480) % CLASSES
    inputs = 3 * torch.eye(CLASSES, 5)[clean] + torch.randn(480, 5, generator=torch.Generator().manual_seed(0))
    return ArrayDataModule(inputs, clean, noise=TransitionNoise(TRUE), batch_size=60, with_index=True)


def shuffled() -> Indexed:
    return Indexed(shuffle=True)


def held_out(stage_one_epochs=2, estimator=ConfidentJointEstimator, folds=3, **arguments):
    """Networks that only predict, for an estimator that needs them."""
    return EstimateTransitionCallback(stage_one_epochs, estimator=estimator, folds=folds, **arguments)


@pytest.mark.parametrize("data", [ours, shuffled, Indexed])
def test_every_sample_is_predicted_by_the_network_that_was_not_trained_on_it(tmp_path, data):
    seen = Networks()
    made = data()
    trainer(tmp_path, [held_out(predict=seen), seen], max_epochs=3).fit(classifier(), made)
    assert seen.names() == ["noisy labels"] * 2 + ["folds"] * 6 + ["correction"]
    everything = range(480)
    training = made.train_index.tolist() if data is ours else everything
    for fold, (trained, predicted) in enumerate(zip(seen.trained[1:4], seen.predicted[1:4], strict=True)):
        own = (part_of(torch.arange(480), 3) == fold).nonzero().flatten().tolist()
        assert sorted(predicted) == own
        assert sorted(trained) == sorted(2 * list(set(training) - set(own)))
        assert (trained != sorted(trained)) or data is Indexed
    assert sorted(chain(*seen.predicted[1:4])) == list(everything)
    assert sorted(seen.trained[4]) == sorted(training)


def test_out_of_fold_predictions_are_what_the_estimator_gets(tmp_path):
    said: dict[int, torch.Tensor] = {}

    class Predict(Networks):
        def __call__(self, module, batch):
            logits, labels = super().__call__(module, batch)
            if len(self.trained) > 1:
                said.update(zip(batch[2].tolist(), logits, strict=True))
            return logits, labels

    class Data(Indexed):
        def estimation_dataloader(self):  # in batches that say which samples they hold
            return DataLoader(self.train, batch_size=50)

    seen, data = Predict(), Data()
    callback = held_out(predict=seen)
    trainer(tmp_path, [callback, seen], max_epochs=3).fit(classifier(), data)
    by_hand = ConfidentJointEstimator(CLASSES)
    logits = torch.stack([said[place] for place in range(480)])
    by_hand.update(Predictions(logits, data.train.tensors[1], held_out=torch.ones(480, dtype=torch.bool)))
    assert torch.equal(callback.transition, by_hand.compute())


def test_each_network_is_a_fit_of_its_own_on_the_other_parts(tmp_path):
    """From the first weights, with an optimizer and a schedule that spans its epochs."""
    kept = []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kept.append(weights(pl_module))

    data = Indexed()
    correction = ForwardCorrection(num_classes=CLASSES)
    callback = held_out(4, estimate_from="last", correction=correction, loss_attribute="criterion", folds=2)
    callbacks = [callback, Keep()]
    trainer(tmp_path, callbacks, max_epochs=6).fit(ForeignClassifier(), data)
    others = (part_of(torch.arange(480), 2) != 0).nonzero().flatten().tolist()
    alone = ForeignClassifier()
    some = TensorDataset(*(tensor[others] for tensor in data.train.tensors))
    trainer(tmp_path, max_epochs=4).fit(alone, DataLoader(some, batch_size=60), data.val_dataloader())
    assert torch.equal(kept[7], weights(alone))


@pytest.mark.parametrize("options", [{"max_epochs": 5}, {"max_epochs": -1, "max_steps": 40}])
@pytest.mark.parametrize("batches", [1, 3])
def test_the_fit_is_longer_by_what_the_networks_take(tmp_path, options, batches):
    seen = Networks()
    callback = held_out(2, predict=seen)
    model = classifier()
    run = trainer(tmp_path, [callback, seen], accumulate_grad_batches=batches, **options)
    if "max_steps" in options:
        options["max_steps"] = {1: 40, 3: 15}[batches]
        run = trainer(tmp_path, [callback, seen], accumulate_grad_batches=batches, **options)
    run.fit(model, Indexed())
    assert seen.names() == ["noisy labels"] * 2 + ["folds"] * 6 + ["correction"] * 3
    assert callback.added_epochs == 6
    assert [stage for _, stage, _ in seen.epochs] == [1] * 8 + [2] * 3
    if "max_steps" in options:
        sizes = [480 - int((part_of(torch.arange(480), 3) == fold).sum()) for fold in range(3)]
        added = sum(2 * math.ceil(math.ceil(size / 60) / batches) for size in sizes)
        assert run.global_step == options["max_steps"] + added
    else:
        assert run.current_epoch == run.max_epochs == 5 + 6


def test_fine_tuning_begins_later_by_what_the_networks_take(tmp_path):
    class Trusted(Indexed):
        def trusted_train_dataloader(self):
            return DataLoader(TensorDataset(*(tensor[:30] for tensor in self.train.tensors)), batch_size=30)

    seen = Networks()
    tuned = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            tuned.append(fine.phase is not None)

    fine = FineTuneOnTrusted(from_epoch=4)
    trainer(tmp_path, [held_out(2, predict=seen), fine, seen, Watch()], max_epochs=6).fit(classifier(), Trusted())
    assert tuned == [False] * 10 + [True] * 2
    assert seen.names()[8:10] == ["correction"] * 2


def test_a_stage_one_counted_in_steps_goes_on_to_the_end_of_the_epoch(tmp_path):
    seen = Networks()
    callback = EstimateTransitionCallback(
        stage_one_steps=11, estimate_from="last", estimator=ConfidentJointEstimator, folds=2, predict=seen
    )
    run = trainer(tmp_path, [callback, seen], max_epochs=4)
    run.fit(classifier(), Indexed())
    assert seen.names() == ["noisy labels"] * 2 + ["folds"] * 4 + ["correction"] * 2


def test_early_stopping_ends_the_running_network_only(tmp_path):
    seen = Networks()
    stopper = EarlyStopping("val_accuracy", mode="max", patience=1, min_delta=9)
    callback = held_out(4, estimator=AnchorEstimator, folds=2, predict=seen, rounds=1, round_epochs=3)
    run = trainer(tmp_path, [callback, stopper, seen], max_epochs=7)
    run.fit(classifier(), Indexed())
    names = seen.names()
    assert names[:2] == ["noisy labels"] * 2  # the first validation is the best one
    assert names[2:6] == ["folds"] * 4
    assert names[6:14] == ["refinement"] * 8
    assert set(names[14:]) == {"correction"}


def test_a_fast_dev_run_has_no_parts_and_needs_none(tmp_path):
    callback = held_out()
    trainer(tmp_path, [callback], max_epochs=10, fast_dev_run=4).fit(classifier(), Indexed())
    assert callback.stage == 2
    assert callback.added_epochs == 0
    assert callback.transition is not None


class Owned(ToyData):
    """Makes the loader that it is told to."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make(self.train)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*ToyData().train.tensors, strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda data: DataLoader(data, 16, sampler=WeightedRandomSampler([1.0] * 96, 96)),
            ValueError,
            r"how WeightedRandomSampler draws samples: give the data module a fold_dataloader\(index\)",
        ),
        (
            lambda data: DataLoader(data, 16, sampler=RandomSampler(data, replacement=True)),
            ValueError,
            "how RandomSampler draws",
        ),
        (
            lambda data: DataLoader(data, 16, sampler=RandomSampler(data, num_samples=20)),
            ValueError,
            "how RandomSampler draws",
        ),
        (
            lambda data: DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 16, False)),
            ValueError,
            "how BatchSampler draws",
        ),
        (lambda data: [DataLoader(data, 16), DataLoader(data, 16)], TypeError, "but the training data is a list"),
        (lambda data: DataLoader(Stream(), 16), ValueError, "how _InfiniteConstantSampler draws"),
        (
            lambda data: DataLoader(TensorDataset(*(tensor[:90] for tensor in data.tensors)), 16),
            ValueError,
            "There are 90 training samples and 96 that T is estimated on, and nothing says which are which",
        ),
    ],
    ids=["weighted", "replacement", "some", "batch sampler", "several", "iterable", "another length"],
)
def test_what_cannot_be_parted_is_refused_before_the_first_step(tmp_path, make, error, message):
    run = trainer(tmp_path, [held_out()], max_epochs=3)
    with pytest.raises(error, match=message):
        run.fit(classifier(), Owned(make))
    assert run.global_step == 0


@pytest.mark.parametrize("estimator", [ConfidentJointEstimator, counted])
def test_what_the_network_predicts_is_looked_at_before_the_first_step(tmp_path, estimator):
    run = trainer(tmp_path, [held_out(estimator=estimator, predict=lambda module, batch: module(batch[0]))])
    with pytest.raises(TypeError, match="predict must return the logits and the noisy labels"):
        run.fit(classifier(), Indexed())
    assert run.global_step == 0


def test_an_estimation_set_of_another_length_may_say_its_index(tmp_path):
    class Some(TensorDataset):
        index = torch.arange(0, 480, 2)

    class Data(Indexed):
        def estimation_dataloader(self):
            return DataLoader(Some(*(tensor[::2] for tensor in self.train.tensors)), batch_size=50)

    seen = Networks()
    trainer(tmp_path, [held_out(predict=seen), seen], max_epochs=3).fit(classifier(), Data())
    for trained, predicted in zip(seen.trained[1:4], seen.predicted[1:4], strict=True):
        assert not set(trained) & set(predicted)
    assert sorted(chain(*seen.predicted[1:4])) == list(range(0, 480, 2))


def test_somebody_elses_data_module_may_make_the_loader_of_a_part(tmp_path):
    class Data(Indexed):
        def train_dataloader(self):
            return self.of(range(480))

        def fold_dataloader(self, index):
            return self.of(index.tolist())

        def of(self, places):
            return DataLoader(self.train, self.batch_size, sampler=list(places))

    seen = Networks()
    trainer(tmp_path, [held_out(predict=seen), seen], max_epochs=3).fit(classifier(), Data())
    for fold in range(3):
        assert not (part_of(torch.tensor(seen.trained[1 + fold]), 3) == fold).any()


def test_a_module_or_a_loader_may_give_the_data(tmp_path):
    data = Indexed()

    class Own(ForeignClassifier):
        num_classes = CLASSES

        def on_transition_estimated(self, transition):
            pass

        def train_dataloader(self):
            return data.train_dataloader()

        def val_dataloader(self):
            return data.val_dataloader()

        def estimation_dataloader(self):
            return DataLoader(data.train, batch_size=60)

    def run(model, *loaders):
        seen = Networks()
        callback = held_out(predict=seen, monitor="val_acc", mode="max")
        trainer(tmp_path, [callback, seen], max_epochs=3).fit(model, *loaders)
        return callback.transition, seen.trained

    own, trained = run(Own())
    given, again = run(Own(), data.train_dataloader(), data.val_dataloader())
    assert torch.equal(own, given)
    assert trained == again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"round_epochs": 0}, "round_epochs must be at least 1, got 0"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EstimateTransitionCallback(1, **arguments)


def test_parts_come_with_rounds():
    assert Plan().num_folds == 0
    assert Plan(rounds=0, asked=2).num_folds == 0
    assert Plan(asked=2).num_folds == Plan(rounds=1).num_folds == 2
    assert Plan(folds=5).num_folds == Plan(folds=5, asked=2).num_folds == 5
