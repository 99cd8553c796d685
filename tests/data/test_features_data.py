"""The data module of a folder of features, in fits."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from toy import CLASSES, FEATURES, adam, anchored, backbone, trainer

from noisylightning import ForwardCorrection, NoisyLabelClassifier
from noisylightning.data import ArrayDataModule, FeaturesDataModule, SymmetricNoise
from noisylightning.encoders import Encoder
from noisylightning.extraction import extract_features

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Jitter:
    """Moves samples by their draws."""

    num_draws = FEATURES

    def __call__(self, inputs, draws):
        return inputs + draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three blobs as they are, and two views of each sample."""
    path = tmp_path_factory.mktemp("features")
    return make(path, nn.Identity())


def make(path, network, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % CLASSES
    inputs = 3 * torch.eye(CLASSES, FEATURES)[labels] + torch.randn(150, FEATURES, generator=generator) + shift
    test = (inputs[:30], labels[:30])
    data = ArrayDataModule(inputs, labels, test, noise=SymmetricNoise(0.3), augmentation=Jitter())
    extract_features(data, Encoder(network), path, views=2)
    return path


def fit(where, folder, ckpt_path=None, epochs=4):
    data = FeaturesDataModule(folder, batch_size=32, val_fraction=0.2, with_index=True)
    model = NoisyLabelClassifier(backbone(), ForwardCorrection(num_classes=CLASSES), optimizer=adam)
    seen: list[torch.Tensor] = []
    step = model.training_step
    model.training_step = lambda batch, *args: (seen.append(batch[0].clone()), step(batch, *args))[1]
    every = ModelCheckpoint(where, filename="{epoch}", save_top_k=-1)
    fitting = trainer(where, [anchored(stage_one_epochs=2), every], epochs, enable_checkpointing=True)
    torch.manual_seed(0)
    fitting.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    weights = torch.cat([value.detach().flatten() for value in model.parameters()])
    return weights, seen, fitting


def test_a_fit_resumes_bit_for_bit(folder, tmp_path):
    whole, seen, _ = fit(tmp_path, folder)
    batches = len(seen) // 4
    assert not torch.equal(torch.cat(seen[:batches]).sort(0)[0], torch.cat(seen[batches : 2 * batches]).sort(0)[0])
    for epoch in range(3):
        weights, rest, _ = fit(tmp_path, folder, tmp_path / f"epoch={epoch}.ckpt")
        assert torch.equal(weights, whole)
        assert len(rest) == (3 - epoch) * batches
        assert all(torch.equal(a, b) for a, b in zip(rest, seen[-len(rest) :], strict=True))


def test_a_checkpoint_knows_its_encoder_and_a_resumed_fit_its_samples(folder, tmp_path):
    _, _, fitting = fit(tmp_path, folder, epochs=3)
    checkpoint = tmp_path / "epoch=1.ckpt"
    same_encoder = make(tmp_path / "moved", nn.Identity(), shift=1.0)
    fitting.test(
        fitting.lightning_module,
        FeaturesDataModule(same_encoder),
        ckpt_path=checkpoint,
        weights_only=True,
        verbose=False,
    )
    with pytest.raises(ValueError, match=r"features of Identity with another training samples .*--data.folder"):
        fit(tmp_path, same_encoder, checkpoint)
    other = make(tmp_path / "other", nn.Linear(FEATURES, FEATURES))
    with pytest.raises(ValueError, match=r"features of Identity with another encoder than those in .*, of Linear"):
        FeaturesDataModule.from_checkpoint(checkpoint, folder=other)
    assert FeaturesDataModule.from_checkpoint(checkpoint, folder=folder).class_names == ["0", "1", "2"]


def test_what_a_folder_has_not_is_said(folder):
    data = FeaturesDataModule(folder)
    with pytest.raises(ValueError, match="FeaturesDataModule has no flips of its own"):
        data.asymmetric_transition(0.2)
    assert data.load_val() is data.load_trusted() is data.load_predict() is data.sample_names() is None
