"""Rounds in which networks trained with a T refine it, and the choice among what comes out."""

import contextlib
import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import TensorDataset
from toy import (
    CLASSES,
    TRUE,
    ForeignClassifier,
    Indexed,
    Networks,
    classifier,
    counted,
    trainer,
    uncorrected,
    weights,
)

from noisylightning import (
    AnchorEstimator,
    ConfidentJointEstimator,
    ConsensusEstimator,
    EstimateTransitionCallback,
    ForwardCorrection,
)
from noisylightning.data import ArrayDataModule, TransitionNoise
from noisylightning.errors import BadValue
from noisylightning.functional import refinement as of_parts
from noisylightning.functional.calibration import calibrate
from noisylightning.functional.expectation_maximization import expected_counts, maximize
from noisylightning.functional.refinement import Refined
from noisylightning.phases import Candidate, Memory, refinement
from noisylightning.phases.folds import Plan
from noisylightning.transition import SparseTransition, VolumeMinimization, from_flips, relative_l1_error, symmetric


class First(Callback):
    """Keeps the weights that stage two begins from."""

    def __init__(self, callback) -> None:
        self.callback, self.weights = callback, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.callback.stage == 2 and self.weights is None:
            self.weights = weights(pl_module)


def refined(folder, data=None, max_epochs=6, model=None, callbacks=(), **arguments):
    seen = Networks()
    callback = EstimateTransitionCallback(
        **({"stage_one_epochs": 4, "estimator": counted, "predict": seen, "round_epochs": 2} | arguments)
    )
    model = model or classifier()
    run = trainer(folder, [callback, seen, *callbacks], max_epochs=max_epochs)
    torch.manual_seed(0)
    run.fit(model, data or Indexed())
    return callback, seen, run, model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return refined(tmp_path_factory.mktemp("refined"))


def test_the_parts_of_the_fit(finished):
    callback, seen, run, _ = finished
    expected = ["noisy labels"] * 4 + ["folds"] * 2 * 4 + ["refinement"] * 2 * 2 * (3 + 2) + ["correction"] * 2
    assert seen.names() == expected
    assert [stage for _, stage, _ in seen.epochs] == [1] * 32 + [2] * 2
    assert callback.added_epochs == 28
    assert run.current_epoch == run.max_epochs == 6 + 28


def test_every_round_trains_the_identity_and_what_is_to_be_refined(finished):
    _, seen, _, _ = finished
    networks = seen.transitions[3:13]
    for one, other in zip(networks[::2], networks[1::2], strict=True):
        assert torch.equal(one, other)
    first, joint, anchor, again, best = networks[::2]
    assert torch.equal(first, torch.eye(CLASSES))
    assert torch.equal(again, torch.eye(CLASSES))
    assert len({tuple(T.flatten().tolist()) for T in (first, joint, anchor, best)}) == 4


def test_no_network_is_trained_on_what_it_predicts(finished):
    _, seen, _, _ = finished
    for trained, predicted in zip(seen.trained[1:13], seen.predicted[1:13], strict=True):
        assert not set(trained) & set(predicted)
        assert set(trained) | set(predicted) == set(range(480))


def test_what_is_refined_is_nearer_to_the_truth(finished):
    callback, seen, _, model = finished
    _, joint, anchor, _, once = (relative_l1_error(T, TRUE) for T in seen.transitions[3:13:2])
    assert max(relative_l1_error(callback.transition, TRUE), once) < min(joint, anchor)
    assert torch.equal(model.correction.transition, callback.transition)
    assert callback.standard_error.shape == (CLASSES, CLASSES)
    assert float(callback.standard_error.max()) < 0.1


def test_stage_two_has_all_data_again(finished):
    _, seen, run, _ = finished
    assert run.train_dataloader.dataset is run.datamodule.train
    assert sorted(seen.trained[-1]) == sorted(2 * list(range(480)))


def test_stage_two_begins_from_the_first_weights(finished, tmp_path):
    callback, _, _, model = finished
    alone = classifier(correction=ForwardCorrection(callback.transition))
    trainer(tmp_path, max_epochs=2).fit(alone, Indexed())
    assert torch.equal(weights(model), weights(alone))


def test_the_memory_lets_go_of_networks(finished):
    memory = finished[0]._memory
    assert (memory.candidates, memory.out_of_fold, memory.fold_weights) == ([], [], [])


def judged_in_turn(monkeypatch, found):
    """The candidates that are left after a round in which these come out."""
    phase = refinement.RefinementPhase(Plan(folds=2, rounds=2), predict=None)
    memory = Memory(correction=ForwardCorrection(num_classes=3))
    memory.candidates = [Candidate("identity", torch.eye(3)), *(Candidate(name, T) for name, T, _ in found)]
    outcomes = [torch.full((100,), -9.0), *(log_likelihood for *_, log_likelihood in found)]

    def outcome(phase, candidates, *_):
        running = candidates[phase._place]
        return replace(running, weights=[{}, {}], log_likelihood=outcomes[phase._place])

    monkeypatch.setattr(refinement.RefinementPhase, "_judged", outcome)
    for place in range(len(outcomes)):
        phase._begun = 2 * (place + 1)
        phase._judge(memory)
    return memory.candidates


def test_who_may_still_be_the_best_keeps_its_networks_for_the_next_round(monkeypatch):
    """Who is close to whom is not transitive, so a new leader may bring back one that another had passed."""
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0))
    spread = spread - spread.mean()
    found = [
        ("first", 0.7 * torch.eye(3) + 0.1, torch.zeros(100)),
        ("passes", torch.eye(3), spread - 0.04),
        ("leads", 0.4 * torch.eye(3) + 0.2, spread + 0.01),
    ]
    _, best = judged_in_turn(monkeypatch, found[:2])
    assert best.name == "passes"  # close to the leader, and its rows are farther apart
    identity, best = judged_in_turn(monkeypatch, found)
    assert best.name == "first"
    assert len(best.weights) == len(identity.weights) == 2


def test_who_is_out_stays_out_and_keeps_no_networks(monkeypatch):
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found = [("worse", torch.eye(3), torch.full((100,), -0.5)), ("leads", 0.7 * torch.eye(3) + 0.1, torch.zeros(100))]
    far = ("strays", 0.4 * torch.eye(3) + 0.2, 99 * (spread - spread.mean()) + 0.01)  # all are close to it
    _, best = judged_in_turn(monkeypatch, [*found, far])
    assert best.name == "leads"


def twice_judged(monkeypatch, caplog, log_likelihoods, name="found"):
    """The candidate after two rounds in which labels are so probable."""
    caplog.set_level(logging.INFO)
    phase, correction = refinement.RefinementPhase(Plan(folds=2, rounds=2), predict=None), ForwardCorrection()
    rival = Candidate("identity", torch.eye(3), log_likelihood=torch.full((100,), -9.0))
    candidate, outcomes = Candidate(name, torch.eye(3)), []
    for over, log_likelihood in enumerate(log_likelihoods):
        phase._over, phase._begun, phase._trained = over, 4, [{"round": over}]
        found = Refined((0.7 - 0.3 * over) * torch.eye(3) + 0.1 + 0.1 * over, log_likelihood, torch.eye(3), [], [], [])
        monkeypatch.setattr(refinement, "refine", lambda *_, found=found: found)
        monkeypatch.setattr(refinement, "held_out_log_likelihood", lambda *_, found=found: found.log_likelihood)
        monkeypatch.setattr(refinement, "_standard_error", lambda _, over=over: torch.full((3, 3), over / 10))
        monkeypatch.setattr(refinement, "foretold", lambda *_: torch.ones(100, dtype=torch.bool))
        candidate = phase._judged([rival, candidate], [], correction)
        outcomes.append(candidate)
    return outcomes


def test_a_round_that_makes_labels_less_probable_changes_nothing(monkeypatch, caplog):
    """Its networks know their own labels by heart, which a T-hat of what they say takes for noise."""
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0)) / 10
    once, twice = twice_judged(monkeypatch, caplog, [torch.zeros(100), spread - 0.1])
    assert twice is once
    assert (once.rounds, once.weights, float(once.standard_error.max())) == (1, [{"round": 0}], 0.0)
    assert "Round 2, found: log-likelihood of a held-out label -0.0" in caplog.text
    assert "against the round before, so T-hat stays as it was" in caplog.text


def test_a_round_that_may_be_as_good_counts(monkeypatch, caplog):
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0)) / 10
    _, twice = twice_judged(monkeypatch, caplog, [torch.zeros(100), spread - spread.mean() - 0.01])
    assert (twice.rounds, twice.weights) == (2, [{"round": 1}])
    assert "stays as it was" not in caplog.text


def test_the_identity_too_is_as_good_as_it_was_at_its_best(monkeypatch, caplog):
    once, twice = twice_judged(monkeypatch, caplog, [torch.zeros(100), torch.full((100,), -0.1)], name="identity")
    assert twice is once


def test_stage_two_may_go_on_from_stage_ones_weights(tmp_path):
    arguments = {"stage_one_epochs": 2, "estimate_from": "last", "reinit": "keep"}
    callback = EstimateTransitionCallback(**arguments, estimator=counted, rounds=1, round_epochs=2)
    first = First(callback)
    trainer(tmp_path, [callback, first], max_epochs=3).fit(classifier(), Indexed())
    alone = uncorrected()
    trainer(tmp_path, max_epochs=2).fit(alone, Indexed())
    assert torch.equal(first.weights, weights(alone))


def test_parts_and_rounds_may_be_chosen(tmp_path):
    _, seen, _, _ = refined(tmp_path, estimator=AnchorEstimator, folds=3, rounds=1, round_epochs=1)
    assert seen.names() == ["noisy labels"] * 4 + ["folds"] * 3 * 2 + ["refinement"] * 3 * 2 + ["correction"] * 2


def test_without_rounds_the_most_central_is_taken_as_it_is(tmp_path):
    found = []

    class Watched(AnchorEstimator):
        def compute(self):
            found.append(super().compute())
            return found[-1]

    class Half(Watched):
        def compute(self):
            return (super().compute() + 1 / CLASSES) / 2

    callback, seen, _, _ = refined(
        tmp_path, estimator=lambda classes: ConsensusEstimator(classes, starts=[Watched, Half]), rounds=0
    )
    assert set(seen.names()) == {"noisy labels", "correction"}
    assert callback.added_epochs == 0
    assert torch.equal(callback.transition, found[0])


def test_a_module_without_a_correction_is_told_the_most_central_unrefined(tmp_path):
    class Hooked(ForeignClassifier):
        num_classes, told = CLASSES, None

        def on_transition_estimated(self, transition):
            self.told = transition

    callback, seen, _, model = refined(tmp_path, model=Hooked(), monitor="val_acc", mode="max")
    assert set(seen.names()) == {"noisy labels", "folds", "correction"}
    assert seen.names().count("folds") == 2 * 4  # as long as stage one, since they only predict
    assert torch.equal(model.told, callback.transition)


@pytest.mark.parametrize("takes", [None, SparseTransition(CLASSES)], ids=["dense", "sparse"])
def test_a_sparse_t_hat_is_refined_in_the_layout_that_the_correction_takes(tmp_path, takes):
    correction = ForwardCorrection(takes, num_classes=None if takes else CLASSES)
    sparse = partial(ConfidentJointEstimator, max_entries=2)
    callback, *_, model = refined(tmp_path, model=classifier(correction=correction), estimator=sparse, rounds=1)
    found = callback.transition
    assert found.layout == (torch.strided if takes is None else torch.sparse_coo)
    assert torch.equal(model.correction.transition, found.to_dense())
    assert relative_l1_error(found.to_dense(), TRUE) < 0.3
    if takes is not None:
        assert (found.to_dense() > 0).sum() < CLASSES**2


def of_the_sample(monkeypatch, hits):
    """Labels are less probable with every T-hat than without, but such a share of them is foretold."""
    monkeypatch.setattr(refinement, "in_log_likelihood", lambda *_: (-0.5, 0.01, "no T"))
    monkeypatch.setattr(refinement, "foretold", lambda parts, T: torch.arange(480) < 480 * hits(T))


FLIPS = from_flips(CLASSES, {0: 1, 1: 2, 2: 0}, 1 / 3)


class Flips(AnchorEstimator):
    """Says that a third of the labels are another class's."""

    def compute(self):
        return FLIPS.clone()


class Even(AnchorEstimator):
    """Says something between that and any class's."""

    def compute(self):
        return (FLIPS + symmetric(CLASSES, 0.5)) / 2


def test_where_noise_depends_on_the_sample_t_hat_stays_as_it_was_estimated(tmp_path, monkeypatch):
    """Of several the one with which most labels were foretold; its bits, with nothing mixed in."""
    of_the_sample(monkeypatch, lambda T: 0.4 + 0.5 * float(T[0, 2] < 0.05 < T[0, 1]))
    callback, _, _, model = refined(tmp_path, estimator=partial(ConsensusEstimator, starts=[Even, Flips]))
    assert torch.equal(callback.transition, FLIPS)
    assert torch.equal(model.correction.transition, callback.transition)
    assert callback.gain_in == "accuracy"
    assert callback.gain[0] > 0.4
    assert callback._memory.unrefined is None


def test_labels_that_are_not_foretold_more_often_leave_t_the_identity(tmp_path, monkeypatch):
    of_the_sample(monkeypatch, lambda T: 0.4)
    with pytest.warns(UserWarning, match="No T-hat foretells held-out labels better than none"):
        callback, *_ = refined(tmp_path, estimator=AnchorEstimator, rounds=1)
    assert torch.equal(callback.transition, torch.eye(CLASSES))
    assert callback.gain_in == "log-likelihood"


class Random(Indexed):
    """Labels that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        inputs, labels, index = self.train.tensors
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.train = TensorDataset(inputs, labels[order], index)


def test_labels_that_say_nothing_leave_t_the_identity_and_stage_two_cross_entropy(tmp_path):
    with pytest.warns(UserWarning, match=r"No T-hat foretells held-out labels better than none \(.*; log-likelihood"):
        callback, _, _, model = refined(tmp_path, Random(), rounds=1, callbacks=())
    assert torch.equal(callback.transition, torch.eye(CLASSES))
    assert callback.standard_error is None
    alone = uncorrected()
    trainer(tmp_path, max_epochs=2).fit(alone, Random())
    assert torch.equal(weights(model), weights(alone))


@pytest.mark.parametrize("failing", [1, 2])
def test_where_every_t_hat_fails_in_a_round_t_stays_the_identity(tmp_path, monkeypatch, caplog, failing):
    caplog.set_level(logging.INFO)

    def counts(*args):
        if sum("Round" in line for line in caplog.messages) >= 2 * (failing - 1):
            raise BadValue("It does not work.")
        return expected_counts(*args)

    monkeypatch.setattr(of_parts, "expected_counts", counts)
    with pytest.warns(UserWarning, match=r"better than none \(each was left out\), so T stays the identity"):
        callback, seen, _, _ = refined(tmp_path)
    assert torch.equal(callback.transition, torch.eye(CLASSES))
    assert callback.stage == 2
    assert seen.names()[-2:] == ["correction"] * 2
    assert callback.added_epochs == 8 + (12 if failing == 1 else 20)
    left_out = [line for line in caplog.messages if "is left out: It does not work." in line]
    assert len(left_out) == (2 if failing == 1 else 1)


def test_a_replicate_without_a_class_costs_the_standard_errors_alone(tmp_path, monkeypatch):
    def maximized(counts):
        if len(counts) == 100:
            raise BadValue("The network holds no sample for one of class 2.")
        return maximize(counts)

    monkeypatch.setattr(of_parts, "maximize", maximized)
    monkeypatch.setattr(of_parts, "MOST_CLASSES", CLASSES - 1)  # more than it has numbers for
    with pytest.warns(UserWarning, match="goes without standard errors: The network holds no sample"):
        callback, *_ = refined(tmp_path, estimator=AnchorEstimator, rounds=1)
    assert callback.standard_error is None
    assert relative_l1_error(callback.transition, TRUE) < 0.3


def exchanging(trusted):
    """Two classes that give most of their labels to each other."""
    clean = torch.arange(960) % CLASSES
    inputs = 4 * torch.eye(CLASSES, 5)[clean] + torch.randn(960, 5, generator=torch.Generator().manual_seed(0))
    noise = TransitionNoise(from_flips(CLASSES, {0: 1, 1: 0}, 0.6))
    return ArrayDataModule(inputs, clean, noise=noise, batch_size=60, with_index=True, trusted=trusted)


class Exchanged(AnchorEstimator):
    """The start whose diagonal is largest, under the wrong names."""

    def compute(self):
        return from_flips(CLASSES, {0: 1, 1: 0}, 0.4)


def test_trusted_labels_name_classes_that_noisy_labels_exchange(tmp_path, monkeypatch):
    """A warning would be an error here: none says that the two cannot be told apart."""
    monkeypatch.setattr(refinement, "SURE", -100.0)  # names are the matter here, not whether T is any good
    left_alone = []

    def calibrated(*args):
        left_alone.append(args[5] if len(args) > 5 else None)  # where T-hat is only judged, none is
        return calibrate(*args)

    monkeypatch.setattr(of_parts, "calibrate", calibrated)
    data = exchanging(1)
    callback, *_ = refined(tmp_path, data, estimator=Exchanged, rounds=1)
    assert relative_l1_error(callback.transition, data.transition) < 0.25
    assert left_alone == [None] * 2 + [[0, 1]] * 10 + [None] * 2


@pytest.mark.parametrize("of_each", [5, 3])
def test_ten_trusted_labels_decide_where_noisy_ones_leave_it_open(tmp_path, monkeypatch, of_each):
    monkeypatch.setattr(refinement, "in_log_likelihood", lambda *_: (0.0, 0.1, "no T"))
    warns = contextlib.nullcontext() if of_each == 5 else pytest.warns(UserWarning, match="No T-hat foretells")
    with warns:
        callback, *_ = refined(tmp_path, exchanging(of_each), estimator=Exchanged, rounds=1)
    assert torch.equal(callback.transition, torch.eye(CLASSES)) == (of_each == 3)
    gain, error = callback.gain
    assert (gain > 2 * error) == (of_each == 5)


@pytest.mark.parametrize(("noisy", "trusted", "taken"), [(0.1, 1.5, True), (0.1, 0.5, False), (-0.3, 1.5, False)])
def test_on_balance_trusted_labels_decide_only_where_noisy_ones_are_for_neither(
    tmp_path, monkeypatch, noisy, trusted, taken
):
    def by_so_many_errors(answers, order=None):
        ups_and_downs = torch.ones(len(answers.labels), dtype=torch.float64)
        ups_and_downs[::2] = -1
        shift = trusted * ups_and_downs.std() / len(answers.labels) ** 0.5
        return ups_and_downs - ups_and_downs.mean() + shift if order is not None else 0 * ups_and_downs

    monkeypatch.setattr(refinement, "in_log_likelihood", lambda *_: (noisy, 0.1, "no T"))
    monkeypatch.setattr(refinement.Answers, "log_likelihood", by_so_many_errors)
    warns = contextlib.nullcontext() if taken else pytest.warns(UserWarning, match="No T-hat foretells")
    with warns:
        callback, *_ = refined(tmp_path, exchanging(5), estimator=Exchanged, rounds=1, round_epochs=1)
    assert torch.equal(callback.transition, torch.eye(CLASSES)) != taken


@pytest.mark.parametrize("trusted", [1, None])
def test_without_rounds_stage_ones_network_names_them(tmp_path, trusted):
    data = exchanging(trusted)
    warns = contextlib.nullcontext() if trusted else pytest.warns(UserWarning, match="cannot tell apart 0 and 1")
    with warns:
        callback, *_ = refined(tmp_path, data, estimator=Exchanged, rounds=0)
    diagonal_first = from_flips(CLASSES, {0: 1, 1: 0}, 0.4)
    torch.testing.assert_close(callback.transition, diagonal_first[[1, 0, 2]] if trusted else diagonal_first)


def test_without_them_a_warning_names_the_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "SURE", -100.0)
    data = exchanging(None)
    with pytest.warns(UserWarning, match="cannot tell apart 0 and 1"):
        callback, *_ = refined(tmp_path, data, estimator=Exchanged, rounds=1)
    assert relative_l1_error(callback.transition[[1, 0, 2]], data.transition) < 0.25


def test_a_learnt_t_is_held_in_the_rounds_and_learns_on_from_what_they_find(tmp_path):
    learnt = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            learnt.append(pl_module.correction.T.is_held)

    correction = ForwardCorrection(VolumeMinimization(CLASSES))
    model = classifier(correction=correction, transition_lr=0.01)
    callback, seen, _, _ = refined(tmp_path, model=model, estimator=AnchorEstimator, rounds=1, callbacks=[Watch()])
    assert learnt == [name != "correction" for name in seen.names()]
    torch.testing.assert_close(correction.T.start, callback.transition)
    assert 1e-4 < (correction.transition.detach() - callback.transition).abs().max() < 0.3


def test_a_fast_dev_run_skips_the_rounds(tmp_path):
    callback = EstimateTransitionCallback(estimator=counted)
    trainer(tmp_path, [callback], fast_dev_run=4).fit(classifier(), Indexed())
    assert callback.stage == 2
    assert callback.added_epochs == 0


def interrupted(folder, when, **options):
    """A fit that is ended where ``when(network)`` says so, and saved as it then is."""

    class Predict(Networks):
        def __call__(self, module, batch):
            if when(len(self.trained)):
                raise KeyboardInterrupt
            return super().__call__(module, batch)

    seen, model = Predict(), classifier(dropout=0.3)
    callback = EstimateTransitionCallback(2, estimator=counted, predict=seen)
    save = OnExceptionCheckpoint(folder)
    run = trainer(folder, [callback, seen, save], max_epochs=3, enable_checkpointing=True)
    torch.manual_seed(0)
    try:
        run.fit(model, Indexed(), weights_only=True, **options)
    except (KeyboardInterrupt, SystemExit):
        return None
    return callback.transition, weights(model)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("place", ["part", "candidate", "round", "choice"])
def test_an_interrupted_end_is_done_again(tmp_path, monkeypatch, place):
    whole = interrupted(tmp_path, lambda network: False)
    assert whole is not None
    with monkeypatch.context() as patch:
        if place == "choice":

            def report(*args, **kwargs):
                raise KeyboardInterrupt

            patch.setattr(refinement, "report", report)
        network = {"part": 2, "candidate": 5, "round": 9, "choice": 99}[place]
        assert interrupted(tmp_path, lambda running: running == network) is None
    transition, last = interrupted(tmp_path, lambda network: False, ckpt_path=tmp_path / "on_exception.ckpt")
    assert torch.equal(transition, whole[0])
    assert torch.equal(last, whole[1])


@pytest.mark.parametrize("top", [1, 2])
def test_best_weights_of_networks_that_are_done_with_are_not_left(tmp_path, top):
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=top, filename="{epoch}")
    callback = EstimateTransitionCallback(stage_one_epochs=3, estimator=counted, round_epochs=1)
    run = trainer(tmp_path, [callback, best], max_epochs=6, enable_checkpointing=True)
    torch.manual_seed(0)
    run.fit(classifier(), Indexed())
    left = sorted(int(path.stem.removeprefix("epoch=")) for path in (tmp_path / "best").iterdir())
    of_stage_one = [epoch for epoch in left if epoch < 3]
    of_stage_two = [epoch for epoch in left if epoch >= run.max_epochs - 3]
    assert len(of_stage_one) == len(of_stage_two) == top
    assert left == of_stage_one + of_stage_two
