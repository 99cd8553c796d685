"""A sparse T-hat of 10,000 classes on its way from counts into the corrected loss."""

from functools import partial

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from toy import CLASSES, ToyData, adam, anchored, backbone, trainer

from noisylightning import ConfidentJointEstimator, ForwardCorrection, NoisyLabelClassifier
from noisylightning.transition import SparseTransition, load_transition

MANY, SOME = 10_000, 3_000


class ManyClasses(LightningDataModule):
    """A held-out sample of each class and another of some, which every other time is labelled as the next class."""

    num_classes = MANY

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.centres = nn.functional.normalize(torch.randn(MANY, 48, generator=generator))
        clean = torch.cat([torch.arange(MANY), torch.arange(SOME)])
        labels = clean.clone()
        labels[MANY::2] += 1
        trained_on = torch.randint(MANY, (600,), generator=generator)
        self.everything = TensorDataset(self.centres[torch.cat([clean, trained_on])], torch.cat([labels, trained_on]))
        self.train_index = torch.arange(MANY + SOME, MANY + SOME + 600)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Subset(self.everything, self.train_index.tolist()), batch_size=300)

    def estimation_dataloader(self) -> DataLoader:
        return DataLoader(self.everything, batch_size=1000)


def test_ten_thousand_classes_from_counts_to_forward_correction(tmp_path):
    data = ManyClasses()
    network = nn.Linear(48, MANY, bias=False)
    network.weight.data = 40 * data.centres
    model = NoisyLabelClassifier(
        network, ForwardCorrection(SparseTransition(MANY)), optimizer=partial(torch.optim.SGD, lr=1e-3)
    )
    callback = anchored(
        1, estimator=partial(ConfidentJointEstimator, max_entries=2), estimate_from="last", reinit="keep"
    )
    trainer(tmp_path, [callback], max_epochs=2).fit(model, data)
    found = callback.transition
    assert found.layout == torch.sparse_coo
    clean, noisy = found.indices()
    assert ((noisy - clean) % MANY <= 1).all()
    assert len(clean) == MANY + SOME // 2
    # Of label 1 there are three samples, all of them confident: one of class 0, two of class 1.
    assert found.values()[(clean == 0) & (noisy == 1)] == pytest.approx(0.5)
    assert torch.equal(model.correction.T.columns.value.sort().values, found.values().sort().values)
    loss = float(model.correction(network(data.centres[:2]).detach(), torch.tensor([1, 1])))
    assert loss == pytest.approx(-torch.tensor(0.5).log().item() / 2, abs=0.05)
    saved = load_transition(next(tmp_path.rglob("transition.npz")))
    assert torch.equal(saved.indices(), found.indices())
    assert torch.equal(saved.values(), found.values())


class HeldOut(ToyData):
    """Of which a third is not trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.train_index = torch.arange(0, 64)


def sparse_fit(tmp_path, name, max_epochs=4, ckpt_path=None, correction=None):
    model = NoisyLabelClassifier(
        backbone(), ForwardCorrection(SparseTransition(CLASSES)) if correction is None else correction, optimizer=adam
    )
    estimator = partial(ConfidentJointEstimator, max_entries=2)
    callback = anchored(2, estimator=estimator, estimate_from="last")
    run = trainer(tmp_path / name, [callback], max_epochs=max_epochs)
    run.fit(model, HeldOut(), ckpt_path=ckpt_path)
    run.save_checkpoint(tmp_path / name / "last.ckpt")
    return model, callback


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")
def test_a_fit_resumes_with_its_sparse_transition(tmp_path):
    whole, _ = sparse_fit(tmp_path, "whole")
    sparse_fit(tmp_path, "cut", max_epochs=3)
    resumed, callback = sparse_fit(tmp_path, "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert callback.transition.layout == torch.sparse_coo
    assert torch.equal(resumed.correction.transition, whole.correction.transition)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")
def test_a_dense_transition_takes_a_sparse_estimate(tmp_path):
    sparse, callback = sparse_fit(tmp_path, "sparse")
    dense, _ = sparse_fit(tmp_path, "dense", correction=ForwardCorrection(num_classes=CLASSES))
    assert torch.equal(dense.correction.transition, callback.transition.to_dense())
    assert torch.equal(sparse.correction.transition, dense.correction.transition)
