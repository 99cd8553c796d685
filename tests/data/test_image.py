import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from noisylightning.data.image import Normalize, RandomCropFlip


@pytest.mark.parametrize(("size", "padding", "flip"), [(32, 4, True), (28, 0, True), (32, 4, False), (30, 2, True)])
def test_each_image_is_cut_and_mirrored_as_torchvision_would(size, padding, flip):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    draws = torch.rand(50, 3, generator=generator)
    found = RandomCropFlip(size, padding, flip)(images, draws)
    for image, (u, v, w), cut in zip(images, draws.tolist(), found, strict=True):
        room = 32 + 2 * padding - size + 1
        expected = F.crop(F.pad(image, [padding]), int(u * room), int(v * room), size, size)
        if flip and w < 0.5:
            expected = F.horizontal_flip(expected)
        assert torch.equal(cut, expected)


def test_every_window_comes_equally_often():
    draws = torch.rand(90_000, 3, generator=torch.Generator().manual_seed(0))
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(90_000, -1, -1, -1)
    first = RandomCropFlip(2, 0, flip=False)(image, draws)[:, 0, 0, 0]
    counts = torch.bincount(first.long(), minlength=16).view(4, 4)[:3, :3]
    assert counts.sum() == 90_000
    assert ((counts - 10_000).abs() < 500).all()


def test_the_largest_draw_stays_inside():
    image = torch.ones(1, 1, 4, 4)
    largest = torch.tensor([[1 - 2**-24] * 3])
    assert RandomCropFlip(4, 100)(image, largest).shape == (1, 1, 4, 4)


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="images of 6 x 6 pixels, padding included, hold no window of 7 x 7"):
        RandomCropFlip(7, 1)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3))


def test_normalising_is_torchvisions():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    torch.testing.assert_close(Normalize(mean, std)(images), expected)
    assert torch.equal(images, before)
