"""TrustedDataEstimator: the function, batch by batch; and the trusted samples of a data module."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset
from toy import CLASSES, ToyData, anchored, classifier, trainer

from noisylightning import AnchorEstimator, TrustedDataEstimator
from noisylightning.cli import main
from noisylightning.data import ArrayDataModule, SymmetricNoise
from noisylightning.estimators.standalone import estimate_with_trainer
from noisylightning.estimators.within_fit import trusted_predictions
from noisylightning.functional import trusted_transition
from noisylightning.phases import Phase
from noisylightning.predictions import Predictions
from noisylightning.predictions.collect import predictions_of_trusted, trusted_loader


def sample(num=120, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(num, classes, generator=generator).mul(2).softmax(dim=1)
    noisy = torch.multinomial(probs, 1, generator=generator).flatten()
    clean = torch.where(torch.arange(num) % 2 == 0, torch.arange(num) // 2 % classes, -1)
    noisy[::6] = -1
    return Predictions.from_probs(probs, noisy, clean_labels=clean)


def fed(predictions, size, order=None, **options):
    estimator = TrustedDataEstimator(predictions.num_classes, **options)
    for batch in (predictions if order is None else predictions.select(order)).split(size):
        estimator.update(batch)
    return estimator


def test_it_is_the_function():
    whole = sample()
    expected = trusted_transition(whole.probs, whole.clean_labels, whole.noisy_labels)
    assert torch.equal(fed(whole, 7).compute(), expected)


@pytest.mark.parametrize("size", [1, 13, 200])
def test_neither_order_nor_batches_nor_processes_change_a_bit(size):
    whole = sample()
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    expected = fed(whole, 50, replicates=20)
    one, two = (fed(whole, size, part, replicates=20) for part in (order[:70], order[70:]))
    one.moments, one.class_counts = one.moments + two.moments, one.class_counts + two.class_counts  # as processes do
    assert torch.equal(one.compute(), expected.compute())
    assert torch.equal(one.standard_error(), expected.standard_error())
    assert torch.equal(one.class_counts, expected.class_counts)


def test_the_standard_error_is_that_of_samples_drawn_anew():
    """Over 300 data sets from one population the entries scatter as the bootstrap of one of them says."""
    drawn = [fed(sample(480, 3, seed), 480).compute() for seed in range(300)]
    error = fed(sample(480, 3), 480, replicates=300).standard_error()
    torch.testing.assert_close(error, torch.stack(drawn).std(dim=0), rtol=0.35, atol=0)


def test_too_few_samples_for_a_standard_error_are_named():
    few = Predictions.from_probs(torch.eye(3), torch.arange(3), clean_labels=torch.arange(3))
    with pytest.raises(ValueError, match="The 1 trusted samples of class 0 are too few for a standard error"):
        fed(few, 3, replicates=10).standard_error()
    assert fed(few, 3).standard_error() is None


def test_a_sample_with_a_clean_label_only_is_not_taken_for_a_noisy_one():
    trusted = Predictions.from_probs(torch.eye(2), torch.tensor([-1, 1]), clean_labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="AnchorEstimator reads noisy labels, but 1 samples have a clean label only"):
        AnchorEstimator(2).update(trusted)
    with pytest.raises(ValueError, match=r"row 1 has neither \(-1\)"):
        Predictions(torch.zeros(2, 2), torch.tensor([0, -1]), clean_labels=torch.tensor([-1, -1]))


def test_a_missing_class_is_named():
    whole = sample()
    estimator = fed(whole.select(whole.clean_labels != 2), 50)
    with pytest.raises(ValueError, match="none is of class 2; trust one at least of each"):
        estimator.compute()


# Trusted samples of a data module


def arrays(**options):
    inputs, labels = ToyData().train.tensors
    return ArrayDataModule((inputs, labels), val_fraction=0.25, batch_size=16, **options)


class Apart(ToyData):
    """ToyData with trusted samples of their own, which have no noisy label."""

    def __init__(self):
        super().__init__()
        inputs, clean = self.test.tensors
        self.trusted = TensorDataset(inputs[:10], clean[:10])

    def trusted_dataloader(self):
        return DataLoader(self.trusted, batch_size=4)


def expected(module, inputs, clean, noisy=None):
    with torch.no_grad():
        return trusted_transition(module.eval()(inputs).softmax(dim=1), clean, noisy)


class Keep(Phase):
    """Keeps the trusted samples' predictions of the network that T is estimated from."""

    name = "keep"
    trains = False
    found = None

    def begin(self, fit):
        Keep.found = trusted_predictions(fit.trainer, fit.module, lambda m, b: (m(b[0]), b[1]), CLASSES)


def test_a_fit_estimates_t_from_samples_drawn_of_the_training_data(tmp_path):
    """Each once, un-augmented, their noisy labels, which the data module knows, beside the clean ones."""
    data = arrays(trusted=4, noise=SymmetricNoise(0.3))
    callback = anchored(1, estimate_from="last", estimator=TrustedDataEstimator)
    callback.phases.insert(2, Keep())
    trainer(tmp_path, [callback], max_epochs=2).fit(model := classifier(), data)
    model.load_state_dict(torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"])
    (inputs, clean), index = data.load_train(), data.trusted_index
    noisy = data.noisy_labels.labels[index]
    torch.testing.assert_close(callback.transition, expected(model, inputs[index], clean[index], noisy))
    assert torch.equal(Keep.found.index, index)
    assert torch.equal(Keep.found.clean_labels, clean[index])
    assert torch.equal(Keep.found.noisy_labels, noisy)
    assert Keep.found.held_out.all()


def test_a_fit_estimates_t_from_a_trusted_set_of_its_own(tmp_path):
    data = Apart()
    callback = anchored(1, estimate_from="last", estimator=TrustedDataEstimator)
    callback.phases.insert(2, Keep())
    trainer(tmp_path, [callback], max_epochs=2).fit(model := classifier(), data)
    model.load_state_dict(torch.load(callback.stage_one_checkpoint, weights_only=True)["state_dict"])
    torch.testing.assert_close(callback.transition, expected(model, *data.trusted.tensors))
    assert Keep.found.index.tolist() == list(range(96, 106))
    assert (Keep.found.noisy_labels == -1).all()


def test_without_trusted_samples_a_fit_ends_before_its_first_step(tmp_path):
    run = trainer(tmp_path, [anchored(1, estimator=TrustedDataEstimator)], max_epochs=2)
    with pytest.raises(ValueError, match=r"TrustedDataEstimator needs clean_labels, .*: give trusted labels"):
        run.fit(classifier(), arrays())
    assert run.global_step == 0


@pytest.mark.parametrize("data", [lambda: arrays(trusted=4, noise=SymmetricNoise(0.3)), Apart])
def test_a_checkpoint_gives_the_estimate_of_the_fit(data, tmp_path):
    callback = anchored(2, estimator=TrustedDataEstimator)
    trainer(tmp_path, [callback], max_epochs=3).fit(classifier(), data())
    run = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    path = callback.stage_one_checkpoint
    found = estimate_with_trainer(run, classifier(), data(), path, tmp_path / "T.npy", TrustedDataEstimator)
    torch.testing.assert_close(found, callback.transition, atol=1e-6, rtol=0)


def test_a_file_gives_it_too(tmp_path):
    whole = sample()
    whole.save(tmp_path / "predictions.npz")
    files = [f"--predictions={tmp_path}/predictions.npz", f"--output={tmp_path}/T.npy"]
    main(["estimate", *files, "--estimator=TrustedDataEstimator"])
    np.testing.assert_allclose(np.load(tmp_path / "T.npy"), fed(whole, 50).compute(), atol=1e-6)


@pytest.mark.parametrize("world", [1, 4, 16])
def test_every_process_has_its_share_of_the_trusted_samples(world):
    """Each once, also where some process has none; where each must have one, the first sample comes again."""
    shares, filled = [], []
    for rank in range(world):
        run = SimpleNamespace(datamodule=Apart(), global_rank=rank, world_size=world)
        shares.append(sum(len(labels) for _, labels in trusted_loader(run)))
        filled.append(sum(len(labels) for _, labels in trusted_loader(run, at_least_one=True)))
    assert sum(shares) == 10
    assert filled == [max(1, share) for share in shares]


def test_a_process_without_a_share_predicts_nothing():
    run = SimpleNamespace(datamodule=Apart(), global_rank=12, world_size=16)
    assert list(predictions_of_trusted(run, classifier(), trusted_loader(run), None, CLASSES)) == []
