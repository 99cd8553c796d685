"""T-hat without a fit: from a checkpoint, and from a file of predictions."""

from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import TensorDataset
from toy import Counted, Mixed, ToyData, anchored, classifier, trainer, uncorrected

from noisylightning import AnchorEstimator, ClusterabilityEstimator, ConfidentJointEstimator, ForwardCorrection
from noisylightning.cli import main
from noisylightning.estimators.standalone import (
    estimate_from_data,
    estimate_from_predictions,
    estimate_with_trainer,
)
from noisylightning.predictions import Predictions
from noisylightning.transition import SparseTransition, load_transition


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(200, 4, generator=generator).mul(3).softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).flatten()
    np.savez(folder / "predictions.npz", probs=probs.numpy(), noisy_labels=labels.numpy())
    return folder / "predictions.npz", probs, labels


def estimate(probs, labels, quantile="auto"):
    estimator = AnchorEstimator(len(probs[0]), quantile)
    estimator.update(Predictions.from_probs(probs, labels))
    return estimator.compute()


def test_a_table_gives_what_the_estimator_gives_and_feeds_a_correction(table, tmp_path):
    path, probs, labels = table
    main(["estimate", f"--predictions={path}", f"--output={tmp_path}/T.npy"])
    expected = estimate(probs, labels)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), expected)
    assert (tmp_path / "T.png").exists()
    assert torch.equal(ForwardCorrection(str(tmp_path / "T.npy")).transition, expected)


def test_the_estimator_is_chosen_by_name(table, tmp_path):
    path, probs, labels = table
    files = ["--predictions", str(path), f"--output={tmp_path}/T.npy"]
    main(["estimate", *files, "--estimator=AnchorEstimator", "--estimator.quantile=0.9"])
    expected = estimate(probs, labels, 0.9)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), expected)


@pytest.fixture
def run() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)


def test_a_checkpoint_of_stage_one_gives_the_estimate_of_the_fit(run, tmp_path):
    callback = anchored(2)
    trainer(tmp_path, [callback], max_epochs=3).fit(classifier(), ToyData())
    found = estimate_with_trainer(run, classifier(), ToyData(), callback.stage_one_checkpoint, tmp_path / "T.npy")
    torch.testing.assert_close(found, callback.transition, atol=1e-6, rtol=0)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), found)


def test_a_corrected_network_speaks_about_noisy_labels(run, tmp_path):
    """Where T is in the model already, it is p T that the noisy labels follow."""
    model = classifier(correction=ForwardCorrection(ToyData.transition))
    found = estimate_with_trainer(run, model, ToyData(), output=tmp_path / "T.npy")
    inputs, labels = ToyData().train.tensors
    with torch.no_grad():
        expected = estimate(model.eval()(inputs).softmax(dim=1) @ ToyData.transition, labels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_network_with_a_transition_of_the_sample_speaks_about_noisy_labels(run, tmp_path):
    model = classifier(correction=ForwardCorrection(Mixed()))
    found = estimate_with_trainer(run, model, ToyData(), output=tmp_path / "T.npy")
    inputs, labels = ToyData().train.tensors
    with torch.no_grad():
        features = model.eval().backbone[:3](inputs)
        posterior = model.correction.T.at(features, None).posterior(model(inputs))
    torch.testing.assert_close(found, estimate(posterior, labels), atol=1e-5, rtol=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_trainer_is_left_as_it_was(run, tmp_path):
    """Each of several estimates feeds its own estimator, and nothing stays in the trainer."""
    before = list(run.callbacks)
    found = [estimate_with_trainer(run, classifier(), ToyData(), None, tmp_path / "T.npy") for _ in range(3)]
    assert run.callbacks == before
    assert all(torch.equal(each, found[0]) for each in found)
    with pytest.raises(ValueError, match="expects probabilities of shape"):
        estimate_with_trainer(run, classifier(), ToyData(), None, tmp_path / "T.npy", lambda _: AnchorEstimator(4))
    assert run.callbacks == before


class Placed(AnchorEstimator):
    """Keeps what it is told of the samples."""

    needs = frozenset({"held_out"})
    seen: Predictions

    def _accumulate(self, batch: Predictions) -> None:
        super()._accumulate(batch)
        Placed.seen = batch


def test_a_pass_says_which_samples_were_held_out(run, tmp_path):
    data = ToyData(batch_size=96)
    data.train_index = torch.arange(0, 96, 2)
    estimate_with_trainer(run, classifier(), data, None, tmp_path / "T.npy", Placed)
    assert torch.equal(Placed.seen.index, torch.arange(96))
    assert torch.equal(Placed.seen.held_out, torch.arange(96) % 2 == 1)


def test_a_need_that_nothing_meets_is_said_before_the_pass(table, run, tmp_path):
    with pytest.raises(ValueError, match="Placed needs held_out, which these predictions do not have"):
        estimate_with_trainer(run, classifier(), ToyData(), None, tmp_path / "T.npy", Placed)
    with pytest.raises(ValueError, match="Placed needs held_out, which these predictions do not have"):
        estimate_from_predictions(table[0], tmp_path / "T.npy", Placed)


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({}, ["--predictions=missing.npz"], "There is no file"),
        ({}, ["--output=T.txt"], "output must end in .npy"),
        ({"probs": np.full(4, 0.25)}, [], "must hold a table"),
        ({"noisy_labels": np.zeros(3, dtype=int)}, [], "one label a prediction"),
        ({"noisy_labels": np.array(["cat", "dog"] * 2)}, [], "'cat', and nothing says in which order the classes are"),
        (
            {"noisy_labels": np.array(["cat", "ewe"] * 2), "class_names": ["cat", "dog"]},
            [],
            "'ewe', which is not among",
        ),
    ],
)
def test_wrong_files_are_answered_in_one_sentence(arrays, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("predictions.npz", **{"probs": np.full((4, 2), 0.5), "noisy_labels": np.arange(4) % 2, **arrays})
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", "--predictions=predictions.npz", "--output=T.npy", *arguments])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_labels_by_name_are_those_of_the_class_names(tmp_path):
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]).repeat(5, 1)
    names = np.array(["dog", "cat", "dog"] * 5)
    np.savez(tmp_path / "p.npz", probs=probs.numpy(), noisy_labels=names, class_names=["dog", "cat"])
    found = estimate_from_predictions(tmp_path / "p.npz", tmp_path / "T.npy")
    torch.testing.assert_close(found, estimate(probs, torch.tensor([0, 1, 0] * 5)))


def test_data_without_an_estimation_loader_is_refused(run):
    class Bare(ToyData):
        estimation_dataloader = property()

    with pytest.raises(ValueError, match=r"has no estimation_dataloader\(\)"):
        estimate_with_trainer(run, classifier(), Bare())


def test_what_is_no_prediction_is_refused(run, tmp_path):
    model = classifier()
    model.predict_step = lambda batch, batch_idx: [1.0]
    with pytest.raises(TypeError, match=r"predict_step returns, .* but it returned a list"):
        estimate_with_trainer(run, model, ToyData(), None, tmp_path / "T.npy")


def test_standard_errors_are_saved_beside_t_hat(tmp_path):
    data = ToyData()
    with torch.no_grad():
        table = Predictions(classifier().eval()(data.train.tensors[0]), data.train.tensors[1])
    table.save(tmp_path / "p.npz")
    by_hand = Counted(3, replicates=10)
    by_hand.update(table)
    estimate_from_predictions(tmp_path / "p.npz", tmp_path / "T.npy", partial(Counted, replicates=10))
    saved = np.load(tmp_path / "T_standard_error.npy", allow_pickle=False)
    assert np.array_equal(saved, by_hand.standard_error().numpy())
    run = trainer(tmp_path, max_epochs=1)
    estimate_with_trainer(run, classifier(), data, None, tmp_path / "U.npy", partial(Counted, replicates=10))
    assert np.array_equal(np.load(tmp_path / "U_standard_error.npy", allow_pickle=False), saved)


def test_classes_that_cannot_be_told_apart_are_named(tmp_path):
    probs = torch.linspace(0.4, 0.6, 40)
    table = Predictions.from_probs(torch.stack([probs, 1 - probs], dim=1), torch.arange(40) % 2)
    table.save(tmp_path / "p.npz")
    with pytest.warns(UserWarning, match=r"cannot tell apart 0 and 1, on which up to 100.0 points"):
        estimate_from_predictions(tmp_path / "p.npz", tmp_path / "T.npy")


@pytest.mark.parametrize("estimator", [AnchorEstimator, ConfidentJointEstimator])
def test_two_passes_give_what_one_gives(table, run, tmp_path, estimator, monkeypatch):
    data = ToyData()
    data.train_index = torch.arange(48)
    model = uncorrected()
    trainer(tmp_path, max_epochs=6).fit(model, data)
    _, probs, labels = table
    Predictions.from_probs(probs, labels, held_out=torch.ones(200, dtype=torch.bool)).save(tmp_path / "held_out.npz")

    def both():
        return (
            estimate_with_trainer(run, model, data, None, tmp_path / "T.npy", estimator),
            estimate_from_predictions(tmp_path / "held_out.npz", tmp_path / "T.npy", estimator),
        )

    one = both()
    for module in ("anchor", "confident_joint"):
        monkeypatch.setattr(f"noisylightning.estimators.{module}.LARGEST_KEPT", 1)
    for first, second in zip(one, both(), strict=True):
        assert torch.equal(first, second)


def test_a_sparse_estimate_is_saved_as_such(table, tmp_path):
    _, probs, labels = table
    Predictions.from_probs(probs, labels, held_out=torch.ones(200, dtype=torch.bool)).save(tmp_path / "held_out.npz")
    estimator = partial(ConfidentJointEstimator, max_entries=2)
    found = estimate_from_predictions(tmp_path / "held_out.npz", tmp_path / "T.npy", estimator)
    assert torch.equal(load_transition(tmp_path / "T.npz").to_dense(), found.to_dense())
    assert isinstance(ForwardCorrection(str(tmp_path / "T.npz")).T, SparseTransition)


def test_data_alone_gives_what_the_estimator_gives_on_the_inputs(tmp_path):
    data = ToyData(num_train=600)
    inputs, labels = data.train.tensors
    estimator = ClusterabilityEstimator(3)
    estimator.update(Predictions(torch.zeros(600, 3), labels, features=inputs))
    found = estimate_from_data(data, tmp_path / "T.npy")
    assert torch.equal(found, estimator.compute())
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "T.npy")), found)


def test_data_alone_is_not_enough_for_an_estimator_of_predictions(tmp_path):
    with pytest.raises(ValueError, match="AnchorEstimator needs a network's predictions: give --model and"):
        estimate_from_data(ToyData(), tmp_path / "T.npy", AnchorEstimator)


def test_inputs_that_are_no_features_are_refused(tmp_path):
    data = ToyData()
    data.train = TensorDataset(data.train.tensors[0].long(), data.train.tensors[1])
    with pytest.raises(TypeError, match=r"the features are the inputs, which are torch\.int64"):
        estimate_from_data(data, tmp_path / "T.npy")
    data.train = TensorDataset(data.train.tensors[0].float())
    with pytest.raises(TypeError, match="a batch is a list"):
        estimate_from_data(data, tmp_path / "T.npy")
