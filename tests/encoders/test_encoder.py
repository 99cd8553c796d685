"""An encoder's inputs and outputs, and the transform of images beside those of the libraries."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from noisylightning.encoders import Encoder, ImageTransform, rgb_images
from noisylightning.encoders.encoder import checksum_of_state

PHOTO = (40 + 160 * torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
PHOTO = nn.functional.interpolate(PHOTO[None].float(), size=(90, 120), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_grey_images_and_floats_become_colour():
    grey = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    found = rgb_images(grey)
    assert found.shape == (1, 3, 1, 3)
    assert all(torch.equal(channel, grey[0, 0]) for channel in found[0])
    assert torch.equal(rgb_images(grey / 255), found)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_photos_are_prepared_as_the_librarys_own_transform_does(name):
    image = Image.fromarray(PHOTO[0].permute(1, 2, 0).numpy())
    if name == "timm":
        timm = pytest.importorskip("timm")
        config = {"input_size": (3, 56, 56), "crop_pct": 0.875, "interpolation": "bicubic"}
        theirs = timm.data.create_transform(**config, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))(image)
        ours = ImageTransform(56, 64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
    else:
        preset = models.get_model_weights("resnet18").DEFAULT.transforms(crop_size=56, resize_size=64)
        theirs = preset(image)
        ours = ImageTransform(56, 64)
    found = ours(PHOTO)[0]
    assert found.shape == theirs.shape == (3, 56, 56)
    assert (found - theirs).abs().max() < 0.05  # two steps of 255
    assert (found - theirs).abs().mean() < 0.01


def test_small_images_are_scaled_whole():
    """Corners stay corners: nothing is cut from them."""
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[..., 0, 0] = image[..., 3, 3] = 255
    found = ImageTransform(8, 10, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")(image)
    expected = np.kron(image[0].numpy() / 255, np.ones((2, 2)))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


class Gives(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, batch):
        return self.made(batch)


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (lambda x: x[:, :, None], r"gives shape \(4, 3, 1\) for 4 samples, not one vector a sample"),
        (lambda x: x[:1], r"gives shape \(1, 3\) for 4 samples"),
        (lambda x: {"features": x}, "gives a dict for 4 samples"),
        (lambda x: x / 0, "no finite numbers"),
    ],
)
def test_what_is_no_vector_is_refused(made, part):
    with pytest.raises(ValueError, match=part):
        Encoder(Gives(made), name="mine")(torch.ones(4, 3))


def test_samples_of_another_kind_are_refused():
    network = nn.Flatten()
    with pytest.raises(TypeError, match=r"mine takes texts, and was given a tensor of shape \(2, 3\)"):
        Encoder(network, "texts", name="mine")(torch.ones(2, 3))
    with pytest.raises(TypeError, match="takes images, and was given texts"):
        Encoder(network, "images")(["a"])
    with pytest.raises(TypeError, match=r"takes images, of shape .* and was given \(2, 3\)"):
        Encoder(network, "images")(torch.ones(2, 3))
    with pytest.raises(ValueError, match="floats from -1 to 1: give them before they are normalised"):
        Encoder(network, "images")(torch.tensor([-1.0, 1.0]).expand(1, 1, 2, 2))


def test_the_checksum_sees_every_weight_and_nothing_else():
    def network(seed: int, bias: float = 0.0) -> nn.Module:
        torch.manual_seed(seed)
        found = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        found[1].running_mean += bias
        return found

    same, other, moved = network(0), network(1), network(0, 1e-6)
    checksums = {checksum_of_state(each) for each in (same, other, moved)}
    assert len(checksums) == 3
    assert checksum_of_state(network(0).double()) not in checksums
    assert Encoder(network(0).train()).weights_checksum() == checksum_of_state(same)


def test_bfloat16_is_coarser_and_named():
    encoder = Encoder(nn.Linear(64, 8))
    inputs = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
    fine, said = encoder(inputs), encoder.described()
    encoder.precision = "bf16"
    coarse = encoder(inputs)
    assert 0 < (coarse - fine).abs().max() < 0.02
    assert encoder.described() != said
    assert "bf16" in encoder.described()
