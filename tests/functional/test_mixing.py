"""Mixup and CutMix against loops over samples and pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.functional import cutmix, cutmix_box, mix_labels, mixup

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(5, 3, 6, 8, generator=GENERATOR)
PARTNERS = torch.tensor([3, 1, 0, 4, 2])


def test_mixup_mixes_each_sample_with_its_partner():
    mixed = mixup(IMAGES, PARTNERS, 0.3)
    for i, j in enumerate(PARTNERS):
        torch.testing.assert_close(mixed[i], 0.3 * IMAGES[i] + 0.7 * IMAGES[j])


def test_cutmix_takes_the_pixels_of_the_rectangle_from_the_partner_and_no_others():
    before = IMAGES.clone()
    pasted = cutmix(IMAGES, PARTNERS, (1, 4, 5, 8))
    for i, j in enumerate(PARTNERS):
        for row in range(6):
            for column in range(8):
                source = IMAGES[j] if 1 <= row < 4 and 5 <= column < 8 else IMAGES[i]
                assert torch.equal(pasted[i, :, row, column], source[:, row, column])
    assert torch.equal(IMAGES, before)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.floats(0, 1),
    centre=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_the_box_lies_in_the_image_and_its_area_is_what_does_not_stay(size, share, centre):
    (top, bottom, left, right), stays = cutmix_box(*size, share, centre)
    assert 0 <= top <= bottom <= size[0]
    assert 0 <= left <= right <= size[1]
    image = torch.zeros(size)
    image[top:bottom, left:right] = 1
    assert stays == pytest.approx(1 - float(image.mean()))
    assert stays >= share - 1e-9  # what is cut off at the border stays


def test_in_the_middle_of_a_large_image_the_box_has_the_asked_area():
    _, stays = cutmix_box(1000, 2000, 0.36, (0.5, 0.5))
    assert stays == pytest.approx(0.36, abs=2e-3)


def test_labels_are_mixed_as_classes_and_as_probabilities():
    labels = torch.tensor([2, 0, 0, 1, 2])
    one_hot = torch.eye(3)[labels]
    expected = 0.3 * one_hot + 0.7 * one_hot[PARTNERS]
    torch.testing.assert_close(mix_labels(labels, PARTNERS, 0.3, 3), expected)
    torch.testing.assert_close(mix_labels(one_hot, PARTNERS, 0.3, 3), expected)


@pytest.mark.parametrize("labels", [torch.zeros(5, 2, dtype=torch.long), torch.full((5, 4), 0.25), torch.zeros(5)])
def test_labels_of_another_shape_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels to mix must be class indices of shape \(N,\) or probabilities"):
        mix_labels(labels, PARTNERS, 0.5, 3)
