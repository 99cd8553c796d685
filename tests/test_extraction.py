"""An encoder goes over all parts of the data once: what it leaves, and what it does when it is killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import write_cifar10, write_clothing1m, write_own_images
from torch import nn

from noisylightning import extraction
from noisylightning.data import (
    ArrayDataModule,
    CIFAR10NDataModule,
    Clothing1MDataModule,
    CrowdDataModule,
    DigitsDataModule,
    FeaturesDataModule,
    ImageFolderDataModule,
    NoisyLabels,
    RandomCropFlip,
    SymmetricNoise,
    TextTableDataModule,
    WrappedDataModule,
)
from noisylightning.encoders import Encoder, ImageTransform
from noisylightning.extraction import extract_features
from noisylightning.feature_files import FeatureFolder


class Projection(nn.Module):
    """Pixels times a fixed matrix; counts the samples it sees, and may die at a batch."""

    def __init__(self, width: int = 64, dies_at: int | None = None) -> None:
        super().__init__()
        matrix = torch.rand(width, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("matrix", matrix)
        self.dies_at = dies_at
        self.batches: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        if len(self.batches) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch.flatten(1) @ self.matrix


class Pixels(nn.Module):
    """The mean of each channel."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(2, 3))


class Lengths(nn.Module):
    def forward(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def of_colour(size: int = 8) -> Encoder:
    return Encoder(Pixels(), "images", ImageTransform(size, mean=(0, 0, 0), std=(1, 1, 1)), image_size=(size, size))


def test_what_kills_it_costs_no_row(tmp_path):
    """Killed by SIGKILL at the twelfth batch of 23, it goes on, and ends with the same bytes as one that was not."""
    process = multiprocessing.get_context("fork").Process(target=extraction_that_dies, args=(tmp_path / "killed",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = FeatureFolder(tmp_path / "killed").manifest.parts["train"].done
    assert 0 < done < 1437
    assert done % 64 == 0
    with pytest.raises(ValueError, match=f"half-written, {done} of 1,437 rows"):
        FeaturesDataModule(tmp_path / "killed")
    rest, whole = Projection(), Projection()
    extract_features(DigitsDataModule(), Encoder(rest, name="mine"), tmp_path / "killed")
    extract_features(DigitsDataModule(), Encoder(whole, name="mine"), tmp_path / "whole")
    assert sum(rest.batches[1:]) == 1437 + 360 - done  # the first is the rehearsal
    assert sum(whole.batches[1:]) == 1437 + 360
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name
    extract_features(DigitsDataModule(), Encoder(rest, name="mine"), tmp_path / "whole")
    assert sum(rest.batches) == 1437 + 360 - done + 4  # nothing was left to do


def extraction_that_dies(output: Path) -> None:
    torch.set_num_threads(1)  # the threads of the process that forked are not here
    extraction._SECONDS_BETWEEN_SAVES = 0.0
    extract_features(DigitsDataModule(), Encoder(Projection(dies_at=12), name="mine"), output)


def test_features_are_the_encoders_of_what_the_data_module_gives(tmp_path):
    network, data = Projection(), DigitsDataModule()
    cpu = torch.device("cpu")
    manifest = extract_features(data, Encoder(network), tmp_path / "f", batch_size=100, devices=[cpu, cpu])
    assert manifest.width == 3
    served = FeaturesDataModule(tmp_path / "f", standardize=False)
    for part in ("train", "test"):
        inputs, labels = getattr(data, f"load_{part}")()
        features, same = getattr(served, f"load_{part}")()
        assert torch.equal(same, labels)
        assert torch.equal(features, (inputs.flatten(1) @ network.matrix).half())


def test_a_stale_folder_is_refused(tmp_path):
    extract_features(DigitsDataModule(), Encoder(Projection(), name="mine"), tmp_path)
    other = Projection()
    other.matrix[0, 0] += 1
    with pytest.raises(ValueError, match="another encoder, mine: its weights is"):
        extract_features(DigitsDataModule(), Encoder(other, name="mine"), tmp_path)
    with pytest.raises(ValueError, match="another encoder, mine: its transform is"):
        extract_features(DigitsDataModule(), Encoder(Projection(), transform=torch.Tensor.float, name="mine"), tmp_path)
    inputs, labels = DigitsDataModule().load_train()
    inputs[700, 0, 3, 3] += 0.25
    with pytest.raises(ValueError, match=r"train.npy holds features of other data"):
        extract_features(ArrayDataModule(inputs, labels), Encoder(Projection(), name="mine"), tmp_path)


def test_new_labels_need_no_new_features(tmp_path):
    inputs, labels = torch.rand(40, 64), torch.arange(40) % 4
    network = Projection()
    extract_features(ArrayDataModule(inputs, labels, noise=SymmetricNoise(0.5)), Encoder(network), tmp_path)
    extract_features(ArrayDataModule(inputs, 3 - labels), Encoder(network), tmp_path)
    assert sum(network.batches) == 40 + 2 + 2
    data = FeaturesDataModule(tmp_path)
    data.setup("fit")
    assert data.noisy_labels is None
    assert torch.equal(data.load_train()[1], 3 - labels)


def test_human_labels_come_all_at_once(tmp_path):
    write_cifar10(tmp_path)
    original = CIFAR10NDataModule("random1", data_dir=tmp_path, verify=False)
    manifest = extract_features(original, of_colour(), tmp_path / "f")
    assert manifest.noisy_labels == ["random1", "aggre", "random2", "random3", "worse"]
    original.setup("fit")
    for labels in (None, "random1", "worse"):
        data = FeaturesDataModule(tmp_path / "f", labels=labels)
        data.setup("fit")
        assert torch.equal(data.noisy_labels.labels, original.noisy_labels.labels)  # the test's file has one set
        assert torch.equal(data.transition, original.transition)
        assert torch.equal(data.train_index, original.train_index)
    assert "key='worse_label'" in data.noisy_labels.noise
    clean = FeaturesDataModule(tmp_path / "f", labels="clean")
    clean.setup("fit")
    assert clean.noisy_labels is None
    with pytest.raises(ValueError, match=r"no labels 'worst', only random1, .*, worse, clean: .*--data.labels"):
        FeaturesDataModule(tmp_path / "f", labels="worst")
    with pytest.raises(ValueError, match="labels='worse' are noisy, and noise upon them"):
        FeaturesDataModule(tmp_path / "f", labels="worse", noise=SymmetricNoise(0.1))


def test_views_are_what_training_would_see(tmp_path):
    """View v of a sample is the augmented image of epoch v; the plain features stay beside them."""
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    vary = RandomCropFlip(8, padding=3)
    original = ArrayDataModule(images, torch.arange(30) % 3, transform=lambda x: x / 255, augmentation=vary, seed=4)
    manifest = extract_features(original, of_colour(), tmp_path, views=3, batch_size=16)
    assert manifest.num_views == 3
    data = FeaturesDataModule(tmp_path, standardize=False, seed=4, with_index=True, batch_size=30)
    data.setup("fit")
    plain = (images / 255).mean(dim=(2, 3))
    torch.testing.assert_close(data.load_train()[0].float(), plain, atol=1e-3, rtol=0)
    original.with_index = True
    original.setup("fit")
    loader = original.train_dataloader()
    means = torch.full((3, 30, 3), torch.nan)
    for view in range(3):
        loader.sampler.set_epoch(view)
        for inputs, _, index in loader:
            means[view, index] = inputs.mean(dim=(2, 3))
    seen = []
    train = data.train_dataloader()
    for epoch in range(6):
        train.sampler.set_epoch(epoch)
        ((inputs, _, index),) = train
        apart = (means[:, index] - inputs).abs().amax(dim=2)
        assert apart.amin(dim=0).max() < 1e-2
        seen.append(apart.argmin(dim=0)[index.argsort()])
    chosen = torch.stack(seen)
    assert (chosen != chosen[0]).any()  # epochs differ, and so do samples
    assert all(len(row.unique()) == 3 for row in chosen)
    again = FeaturesDataModule(tmp_path, standardize=False, seed=4, with_index=True, batch_size=30)
    again.setup("fit")
    train, other = again.train_dataloader(), data.train_dataloader()
    for loader in (train, other):
        loader.sampler.set_epoch(5)
    assert next(iter(train))[0].equal(next(iter(other))[0])
    inputs, _, index = next(iter(data.estimation_dataloader()))
    torch.testing.assert_close(inputs, plain[index], atol=1e-3, rtol=0)
    unvaried = FeaturesDataModule(tmp_path, standardize=False, augment=False, with_index=True, batch_size=30)
    unvaried.setup("fit")
    inputs, _, index = next(iter(unvaried.train_dataloader()))
    torch.testing.assert_close(inputs, plain[index], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"views.npy holds features of other data"):
        extract_features(original, of_colour(), tmp_path, views=4)


def test_image_files_are_read_at_the_encoders_size(tmp_path):
    write_own_images(tmp_path, num=12)
    data = ImageFolderDataModule(tmp_path, tmp_path / "labels.csv", tmp_path / "checked.csv", size=16)
    extract_features(data, of_colour(20), tmp_path / "f")
    served = FeaturesDataModule(tmp_path / "f", standardize=False)
    assert (served.class_names, served.sample_names()[:2]) == (["ant", "bee", "cat"], ["l0.png", "l1.png"])
    images = ImageFolderDataModule(tmp_path, tmp_path / "labels.csv", size=20, resize=20, in_memory=True).load_train()[
        0
    ]
    expected = (images / 255).mean(dim=(2, 3))
    torch.testing.assert_close(served.load_train()[0].float(), expected, atol=2e-3, rtol=0)
    (tmp_path / "l3.png").write_bytes((tmp_path / "l4.png").read_bytes())
    with pytest.raises(ValueError, match="other data"):
        extract_features(data, of_colour(20), tmp_path / "f")
    (tmp_path / "l3.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"l3.png is corrupt or no image .*skip_corrupt"):
        extract_features(data, of_colour(20), tmp_path / "g")
    skipping = ImageFolderDataModule(tmp_path, tmp_path / "labels.csv", size=16, skip_corrupt=True)
    with pytest.warns(UserWarning, match="1 of 12 images are left out"):
        assert extract_features(skipping, of_colour(20), tmp_path / "h").parts["train"].rows == 11


def test_sets_of_their_own_come_too(tmp_path):
    write_clothing1m(tmp_path)
    extract_features(Clothing1MDataModule(tmp_path, validation="clean"), of_colour(), tmp_path / "f")
    data = FeaturesDataModule(tmp_path / "f")
    data.setup()
    assert data.summary == {"train": 42, "validation": 42, "trusted": 42, "test": 42}


def test_texts_are_read_as_texts(tmp_path):
    rows = ["text,label", *(f"{'x' * (i + 1)},{'ab'[i % 2]}" for i in range(10))]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    (tmp_path / "new.csv").write_text("text\nlonger\nlong\n")
    data = TextTableDataModule(tmp_path / "train.csv", predict_file=tmp_path / "new.csv", trusted=[3, 4])
    extract_features(data, Encoder(Lengths(), "texts"), tmp_path / "f")
    served = FeaturesDataModule(tmp_path / "f", standardize=False, val_fraction=0.25)
    served.setup()
    assert served.load_train()[0][:, 0].tolist() == list(range(1, 11))
    assert served.load_predict()[0][:, 0].tolist() == [6, 4]
    assert served.load_predict()[1].tolist() == [-1, -1]
    assert served.trusted_index.tolist() == [3, 4]
    assert not served.has_test
    assert served.sample_names()[1] == "xx"
    untrusting = FeaturesDataModule(tmp_path / "f", trusted=[])
    untrusting.setup("fit")
    assert not untrusting.has_trusted
    standard = FeaturesDataModule(tmp_path / "f")
    standard.setup("fit")
    inputs = torch.cat(
        [batch[0] for batch in standard.estimation_dataloader()]
        + [standard.trusted_dataloader().dataset.__getitems__([0, 1])[0]]
    )
    torch.testing.assert_close(inputs.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    # The second feature is constant, so that the average is half the first one's.
    torch.testing.assert_close(inputs.var(dim=0, correction=0), torch.tensor([2.0, 0.0]))
    (tmp_path / "train.csv").write_text("\n".join([*rows, "  ,a"]))
    with pytest.raises(ValueError, match=r"train.csv, line 12, has an empty text"):
        extract_features(data, Encoder(Lengths(), "texts"), tmp_path / "f")


def test_texts_of_like_length_share_a_batch_and_keep_their_places(tmp_path):
    widths: list[int] = []

    class Padded(nn.Module):
        def forward(self, texts):
            widths.append(max(map(len, texts)) - min(map(len, texts)))
            return torch.tensor([[float(len(text))] for text in texts])

    lengths = torch.randint(1, 300, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = ["text,label", *(f"{'x' * length},{i % 2}" for i, length in enumerate(lengths))]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    extract_features(TextTableDataModule(tmp_path / "train.csv"), Encoder(Padded(), "texts"), tmp_path, batch_size=8)
    assert FeatureFolder(tmp_path).features("train").flatten().tolist() == lengths
    assert max(widths[1:]) < 100


def test_a_split_of_ones_own_stays(tmp_path):
    inner = DigitsDataModule()
    inner.setup()
    inner.train_index, inner.val_index = torch.arange(100), torch.arange(100, 130)
    data = WrappedDataModule(inner, num_classes=10)
    extract_features(data, Encoder(Projection()), tmp_path)
    served = FeaturesDataModule(tmp_path)
    data.setup("fit")
    served.setup("fit")
    assert torch.equal(served.val_index, data.val_index)
    assert torch.equal(served.train_index, data.train_index)


class NoneOfOurs:
    pass


@pytest.mark.parametrize(
    ("make", "options", "part"),
    [
        (NoneOfOurs, {}, "not of a NoneOfOurs: give it to WrappedDataModule"),
        (lambda: CrowdDataModule(torch.ones(4, 2), torch.tensor([[0, 1]] * 4)), {}, "answers in the place of labels"),
        (lambda: DigitsDataModule(relabel="a.csv"), {}, r"\(--data.relabel\) changes labels"),
        (DigitsDataModule, {"views": 2}, r"does not vary its samples, .*\(--views\)"),
        (DigitsDataModule, {"batch_size": 0}, "batch_size 1, got 0 and 0"),
        (lambda: ArrayDataModule(torch.ones(4, 2), torch.zeros(4)), {}, "labels"),
    ],
)
def test_what_cannot_be_encoded_is_refused_at_once(make, options, part, tmp_path):
    with pytest.raises((ValueError, TypeError), match=part):
        extract_features(make(), Encoder(nn.Flatten()), tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


def test_noise_is_drawn_as_on_the_data_itself(tmp_path):
    original = DigitsDataModule(noise=SymmetricNoise(0.4), noise_seed=3)
    extract_features(original, Encoder(Projection()), tmp_path)
    original.setup("fit")
    carried, drawn = FeaturesDataModule(tmp_path), FeaturesDataModule(tmp_path, noise=SymmetricNoise(0.4), noise_seed=3)
    for data in (carried, drawn):
        data.setup("fit")
        assert torch.equal(data.noisy_labels.labels, original.noisy_labels.labels)
        assert torch.equal(data.transition, original.transition)
    assert isinstance(carried.noisy_labels, NoisyLabels)
    for rate in np.linspace(0, 1, 7).tolist():
        torch.testing.assert_close(
            drawn.asymmetric_transition(rate), original.asymmetric_transition(rate), rtol=0, atol=0
        )
