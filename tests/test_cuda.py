"""What is different on a GPU: precision, where the data lies, other kernels, NCCL."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from test_distributed import fit, ranks, rows, stage_one
from torch import nn
from toy import CLASSES, ForeignClassifier, ToyData, anchored, classifier, estimate_by_hand, trainer

from noisylightning import (
    BackwardCorrection,
    FineTuneOnTrusted,
    ForwardCorrection,
    ImportanceReweighting,
    KnownTransitionCallback,
    NoCorrection,
    NoisyLabelClassifier,
)
from noisylightning.data import ArrayDataModule, FeaturesDataModule, Normalize, RandomCropFlip, SymmetricNoise
from noisylightning.encoders import Encoder, ImageTransform
from noisylightning.extraction import extract_features
from noisylightning.losses import BiTemperedLoss, CrossEntropy, GeneralizedCrossEntropy, MeanAbsoluteError

DEVICE, ACCELERATOR = "cuda", "gpu"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


@pytest.fixture
def deterministic():
    """Lightning leaves the setting behind after the fit."""
    yield True
    torch.use_deterministic_algorithms(False)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).cpu()


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_stage_two_is_a_fit_of_its_own(tmp_path, precision, deterministic):
    callback = anchored(2, estimate_from="last")
    options = {"accelerator": ACCELERATOR, "precision": precision, "deterministic": deterministic}
    both = classifier()
    run = trainer(tmp_path, [callback], max_epochs=4, **options)
    run.fit(both, ToyData())
    two = classifier(correction=ForwardCorrection(callback.transition))
    separate = trainer(tmp_path, max_epochs=2, **options)
    separate.fit(two, ToyData())
    assert callback.transition.device.type == "cpu"
    torch.testing.assert_close(callback.transition.sum(dim=1), torch.ones(CLASSES))
    assert torch.equal(weights(both), weights(two))
    assert run.precision_plugin.state_dict() == separate.precision_plugin.state_dict()


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_every_epoch_end_resumes_bit_for_bit(tmp_path, precision, deterministic):
    def run(**options):
        model = classifier(dropout=0.3)
        every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, enable_version_counter=False)
        settings = {"accelerator": ACCELERATOR, "precision": precision, "deterministic": deterministic}
        callbacks = [anchored(2), every]
        trainer(tmp_path, callbacks, max_epochs=4, enable_checkpointing=True, **settings).fit(
            model, ToyData(), weights_only=True, **options
        )
        return weights(model)

    whole = run()
    for epoch in range(3):
        assert torch.equal(run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt"), whole)


def test_a_compiled_module_goes_through_both_stages(tmp_path):
    pytest.importorskip("triton")
    callback = anchored(1)
    trainer(tmp_path, [callback], max_epochs=2, accelerator=ACCELERATOR).fit(torch.compile(classifier()), ToyData())
    assert callback.stage == 2


def images(**options) -> ArrayDataModule:
    inputs = torch.randint(0, 256, (200, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return ArrayDataModule(
        (inputs, torch.arange(200) % 4),
        test=(inputs, torch.arange(200) % 4),
        transform=Normalize([0.5] * 3, [0.25] * 3),
        augmentation=RandomCropFlip(8, padding=2),
        noise=SymmetricNoise(0.2),
        batch_size=32,
        **options,
    )


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def test_images_lie_on_the_gpu_and_batches_are_those_of_the_cpu(tmp_path):
    seen = {"cpu": [], ACCELERATOR: []}

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            loader = trainer.train_dataloader
            assert loader.dataset.inputs.device == pl_module.device
            assert not loader.pin_memory
            seen[accelerator].extend(part.cpu() for part in batch)

    for accelerator in seen:
        model = NoisyLabelClassifier(network(), num_classes=4)
        trainer(tmp_path, [Keep()], max_epochs=2, accelerator=accelerator).fit(model, images(with_index=True))
    for ours, theirs in zip(*seen.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_three_phases_test_and_predict(tmp_path):
    callback, data = anchored(2), images(trusted=3)
    model = NoisyLabelClassifier(network(), ForwardCorrection(num_classes=4))
    run = trainer(tmp_path, [callback, FineTuneOnTrusted(3)], max_epochs=4, accelerator=ACCELERATOR)
    run.fit(model, data)
    assert callback.stage == 2
    assert "test_accuracy" in run.test(model, data, verbose=False)[0]
    assert sum(map(len, run.predict(model, data))) == 200
    trainer(tmp_path, [KnownTransitionCallback()], max_epochs=1, accelerator=ACCELERATOR).fit(model, data)


@pytest.mark.parametrize("correction", [ForwardCorrection, BackwardCorrection, ImportanceReweighting])
@pytest.mark.parametrize("loss", [CrossEntropy, GeneralizedCrossEntropy, BiTemperedLoss, MeanAbsoluteError])
@pytest.mark.parametrize("scale", [1.0, 200.0], ids=["usual", "underflow"])
@pytest.mark.filterwarnings("ignore:.* is not proper composite")
def test_losses_and_gradients_are_those_of_the_cpu(correction, loss, scale):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(64, CLASSES, generator=generator)
    labels = torch.arange(64) % CLASSES
    results = []
    for device in ("cpu", DEVICE):
        corrected = correction(ToyData.transition, loss=loss()).to(device)
        inputs = logits.to(device).requires_grad_()
        value = corrected(inputs, labels.to(device))
        value.backward()
        results.append((value.detach().cpu(), inputs.grad.cpu()))
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=two_gpus)])
def test_processes_with_synchronized_batch_norm(tmp_path, devices):
    """Over NCCL; on one GPU torch's SyncBatchNorm stands by itself."""
    settings = {"accelerator": ACCELERATOR, "devices": devices, "num_train": 101}
    fit(tmp_path, norm="torch", **settings)
    found = ranks(tmp_path)
    assert len(found) == devices
    for rank in found:
        assert rank["layer"] == "SyncBatchNorm"
        assert rank["statistics"][[0, 2]].abs().sum() == 0
        assert all(torch.equal(rank[name], found[0][name]) for name in ("transition", "callback", "weights"))
    assert rows(torch.cat([rank["seen"] for rank in found])) == rows(ToyData(num_train=101).train.tensors[0])
    model = classifier()
    model.backbone.insert(1, nn.BatchNorm1d(16))
    model.load_state_dict(torch.load(stage_one(tmp_path), weights_only=True)["state_dict"])
    expected = estimate_by_hand(model, ToyData(num_train=101))
    torch.testing.assert_close(found[0]["transition"], expected, atol=1e-4, rtol=0)

    again = tmp_path / "again"
    again.mkdir()
    fit(again, norm="torch", ckpt_path=str(tmp_path / "every" / "epoch=0.ckpt"), **settings)
    for before, after in zip(found, ranks(again), strict=True):
        torch.testing.assert_close(before["weights"], after["weights"], atol=1e-5, rtol=1e-4)


def test_an_attached_correction_comes_back_with_its_module(tmp_path):
    model = ForeignClassifier()
    correction = ForwardCorrection(num_classes=CLASSES)
    callback = anchored(1, monitor="val_acc", mode="max", correction=correction, loss_attribute="criterion")
    trainer(tmp_path, [callback], max_epochs=2, accelerator=ACCELERATOR).fit(model, ToyData())
    expected = ForwardCorrection(callback.transition)
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(model.cpu().criterion(logits, labels), expected(logits, labels))


def test_features_are_made_and_served_on_the_gpu(tmp_path):
    """By two replicas, the same numbers as the processor's; views stay there, too."""
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    vary = RandomCropFlip(32, padding=4)
    data = ArrayDataModule(images, torch.arange(200) % 4, transform=Normalize([0.5] * 3, [0.25] * 3), augmentation=vary)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder = Encoder(network, "images", ImageTransform(48, interpolation="bicubic"))
    extract_features(data, encoder, tmp_path / "cpu", views=2, devices=[torch.device("cpu")])
    cuda = torch.device(DEVICE, 0)
    extract_features(data, encoder, tmp_path / "cuda", views=2, devices=[cuda, cuda])
    served = [FeaturesDataModule(tmp_path / name, standardize=False, batch_size=64) for name in ("cpu", "cuda")]
    for part in ("train", "views"):
        on_cpu, on_gpu = (each.folder.features(part).float() for each in served)
        torch.testing.assert_close(on_gpu, on_cpu, atol=0.02, rtol=0.02)
    seen = []
    model = NoisyLabelClassifier(nn.Linear(32, 4), NoCorrection(), num_classes=4)
    step = model.training_step
    model.training_step = lambda batch, *args: (seen.append(batch[0].device.type), step(batch, *args))[1]
    trainer(tmp_path, accelerator=ACCELERATOR, max_epochs=2).fit(model, FeaturesDataModule(tmp_path / "cuda"))
    assert set(seen) == {DEVICE}
