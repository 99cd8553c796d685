"""A search by noisy validation data: what is tried, what is chosen, and that it is the same each time."""

import math
from functools import partial

import pytest
import torch
from toy import CLASSES, FEATURES, TRUE, ForeignClassifier, Scripted, ToyData, anchored, trainer

from noisylightning import ForwardCorrection, Mixup, NoisyLabelClassifier
from noisylightning.search import print_search, tune

GRID = {"lr": [1e-4, 0.05], "weight_decay": [0.0, 0.5]}
search = partial(tune, accelerator="cpu")


def head(**options) -> NoisyLabelClassifier:
    network = torch.nn.Linear(FEATURES, CLASSES)  # drawn from the state that every trial begins from
    adam = partial(torch.optim.AdamW, **options)
    return NoisyLabelClassifier(network, ForwardCorrection(TRUE), optimizer=adam)


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    found = search(head, ToyData(), GRID, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    return found


def test_every_combination_is_tried_and_the_least_noisy_validation_loss_chosen(found):
    tried = [tuple(trial.options.values()) for trial in found.trials]
    assert tried == [(1e-4, 0.0), (1e-4, 0.5), (0.05, 0.0), (0.05, 0.5)]
    assert found.best is min(found.trials, key=lambda trial: trial.score)
    assert found.best.options["lr"] == 0.05


def test_a_trial_is_the_fit_with_its_setting_and_leaves_its_best_weights(found, tmp_path):
    data = ToyData()
    alone = trainer(tmp_path, max_epochs=found.best.epoch + 1)
    torch.manual_seed(0)
    model = head(**found.best.options)
    alone.fit(model, data)
    assert float(alone.callback_metrics["val_loss"]) == found.best.score
    assert torch.equal(model.backbone.weight, found.model.backbone.weight)


def test_it_is_the_same_each_time_whatever_came_before(found):
    torch.rand(3)
    again = search(head, ToyData(), {**GRID, "lr": [1e-4]}, 3)
    assert again.trials == found.trials[:2]
    assert search(head, ToyData(), {"lr": [1e-4]}, 3, seed=1).best.score != again.trials[0].score


def test_a_table_tells_what_was_tried(found, capsys):
    print_search(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["lr", "weight_decay", "val_loss", "epoch"]
    assert sum("best" in line for line in lines) == 1
    assert len(lines) == 2 + len(found.trials)


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # after one epoch it may
def test_two_stages_with_callbacks_of_their_own_are_judged_by_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []

    def callbacks():
        made.append(anchored(1))
        return [made[-1], Mixup()]

    build = lambda **_: NoisyLabelClassifier(  # noqa: E731
        torch.nn.Linear(FEATURES, CLASSES), ForwardCorrection(num_classes=CLASSES)
    )
    found = search(build, ToyData(), {"unused": [1, 2]}, 3, callbacks)
    assert [callback.stage for callback in made] == [2, 2]
    assert all(trial.epoch >= 1 for trial in found.trials)
    assert found.best is found.trials[0]  # of equal ones the first
    assert not list(tmp_path.iterdir())


def test_an_accuracy_is_best_where_it_is_largest_and_a_nan_never_is():
    scores = {1: (0.5, 0.9, 0.2), 2: (math.nan,), 3: (0.95, 0.1)}

    def build(which):
        model = Scripted(*scores[which])
        model.correction.set_transition(TRUE)
        return model

    found = search(build, ToyData(), {"which": [1, 2, 3]}, 3, monitor="val_accuracy")
    assert [trial.score for trial in found.trials] == pytest.approx([0.9, math.nan, 0.95], nan_ok=True)
    assert (found.best.options, found.best.epoch) == ({"which": 3}, 0)
    with pytest.raises(ValueError, match="none of the 1 settings gave a val_accuracy that is a number"):
        search(build, ToyData(), {"which": [2]}, 1, monitor="val_accuracy")


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        ({}, {}, "nothing to try"),
        ({"lr": []}, {}, "nothing to try"),
        (GRID, {"monitor": "test_accuracy"}, "no validation data"),
        (GRID, {"monitor": "train_loss"}, "no validation data"),
        (
            {"unused": [0]},
            {"monitor": "val_loss"},
            "is nothing that ForeignClassifier logs in validation, only val_acc",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        search(lambda **_: ForeignClassifier(), ToyData(), options, 1, **settings)
