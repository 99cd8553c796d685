import io

import numpy as np
import pytest
import torch
from PIL import Image

from noisylightning.audit import thumbnails_of
from noisylightning.data import DigitsDataModule


def decoded(pictures):
    return [np.array(Image.open(io.BytesIO(picture))) for picture in pictures]


def test_grey_pictures_are_the_images_bit_by_bit():
    images = torch.randint(256, (200, 1, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found = decoded(thumbnails_of(images)(places))
    assert len(found) == 200
    for image, place in zip(found, places.tolist(), strict=True):
        np.testing.assert_array_equal(image, images[place, 0].numpy())


def test_colours_and_sides_are_kept():
    images = torch.zeros(2, 3, 32, 16, dtype=torch.uint8)
    images[0, 0], images[1, 2] = 250, 250
    first, second = decoded(thumbnails_of(images)(torch.arange(2)))
    assert first.shape == (32, 16, 3)
    np.testing.assert_allclose(first.reshape(-1, 3).mean(axis=0), [250, 0, 0], atol=4)
    np.testing.assert_allclose(second.reshape(-1, 3).mean(axis=0), [0, 0, 250], atol=4)


def test_large_images_are_made_smaller_in_proportion():
    images = torch.zeros(1, 3, 400, 200, dtype=torch.uint8)
    assert decoded(thumbnails_of(images)(torch.tensor([0])))[0].shape == (96, 48, 3)
    assert decoded(thumbnails_of(images, side=40)(torch.tensor([0])))[0].shape == (40, 20, 3)


def test_floating_images_are_spread_from_black_to_white():
    images = torch.tensor([-1.0, 0.0, 3.0]).repeat(1, 1, 3, 1)
    assert decoded(thumbnails_of(images)(torch.tensor([0])))[0].tolist() == [[0, 64, 255]] * 3
    flat = torch.full((1, 1, 3, 3), 7.0)
    assert decoded(thumbnails_of(flat)(torch.tensor([0])))[0].tolist() == [[0] * 3] * 3


def test_of_a_data_module_through_the_data_set_that_estimation_reads():
    data = DigitsDataModule()
    data.setup("fit")
    found = thumbnails_of(data.estimation_dataloader().dataset.inputs)
    assert decoded(found(torch.tensor([5])))[0].shape == (8, 8)


def test_images_are_read_only_as_they_are_taken():
    class Reader:
        read = 0

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            self.read += len(index)
            return torch.zeros(len(index), 1, 4, 4, dtype=torch.uint8)

    reader = Reader()
    pictures = iter(thumbnails_of(reader)(torch.arange(1000)))
    next(pictures)
    assert reader.read < 100


@pytest.mark.parametrize("inputs", [torch.zeros(3, 5), torch.zeros(3, 9).long(), torch.zeros(3, 2, 4, 4), torch.zeros(0, 1, 4, 4)])  # fmt: skip # noqa: E501
def test_what_is_no_image_has_no_picture(inputs):
    assert thumbnails_of(inputs) is None


def test_a_side_below_one_pixel_is_refused():
    with pytest.raises(ValueError, match="side must be at least one pixel, got 0"):
        thumbnails_of(torch.zeros(1, 1, 4, 4), side=0)
