"""Views are those of torchvision's transforms on Pillow images, within rounding."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from tests.photographs import photographs
from trainer.data.augment import Box, augment, crop_and_resize, random_box
from trainer.data.config import DataConfig
from trainer.data.counter_rng import UniformStream, derive_key

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


@pytest.mark.parametrize("name", sorted(photographs()))
def test_crop_and_resize_is_pillows_within_rounding(name):
    photograph = photographs()[name]
    pixels = np.array(photograph)
    for number in range(4):
        box = random_box(UniformStream(derive_key(number)), photograph.height, photograph.width, SCALE, RATIO)
        ours = crop_and_resize(pixels, box, 224).permute(1, 2, 0).numpy().astype(int)
        reference = resized_crop(photograph, *box, [224, 224], InterpolationMode.BICUBIC)
        difference = np.abs(ours - np.asarray(reference, dtype=int))
        # Both round to 8 bits between the two passes, with fixed-point weights of their own. That adds up to a dozen
        # levels at rare pixels, and to a quarter of a level on average; a shift by half a pixel would give several.
        assert difference.mean() < 0.3
        assert difference.max() <= 16


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (20, 31), (4000, 90), (16, 3000)], ids="{0[0]}x{0[1]}".format)
def test_so_it_is_for_tiny_and_long_images(size):
    """Enlarged from few pixels, or from a panorama of which a crop is taken; grey as well."""
    for photograph in (photographs()["china"].resize(size), photographs()["coffee"].convert("L").resize(size)):
        rgb = photograph.convert("RGB")
        for number in range(4):
            box = random_box(UniformStream(derive_key(number)), rgb.height, rgb.width, SCALE, RATIO)
            ours = crop_and_resize(np.array(rgb), box, 224).permute(1, 2, 0).numpy().astype(int)
            reference = resized_crop(rgb, *box, [224, 224], InterpolationMode.BICUBIC)
            difference = np.abs(ours - np.asarray(reference, dtype=int))
            assert difference.mean() < 0.6
            assert difference.max() <= 16


@pytest.mark.parametrize(("scale", "ratio"), [(SCALE, RATIO), ((0.02, 0.2), (0.2, 5.0))])
def test_random_boxes_are_distributed_as_torchvisions(scale, ratio):
    height, width, count = 300, 451, 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    ours = np.array([random_box(UniformStream(derive_key(n)), height, width, scale, ratio) for n in range(count)])
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        grid = np.arange(max(height, width))
        distance = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / count
        # Kolmogorov-Smirnov: two samples of 4000 from one distribution are further apart once in 10,000.
        assert distance < 2.23 * math.sqrt(2 / count)


def test_boxes_lie_inside_the_image():
    for height, width in ((1, 1), (2, 500), (333, 500), (7, 5)):
        for number in range(200):
            box = random_box(UniformStream(derive_key(number)), height, width, SCALE, RATIO)
            assert box.height >= 1
            assert box.width >= 1
            assert 0 <= box.top <= height - box.height
            assert 0 <= box.left <= width - box.width


@pytest.mark.parametrize(("height", "width"), [(20, 1000), (1000, 20)])
def test_an_extreme_format_gives_torchvisions_centred_crop(height, width):
    image = torch.empty(3, height, width)
    ours = random_box(UniformStream(1), height, width, (0.9, 1.0), RATIO)
    assert ours == RandomResizedCrop.get_params(image, [0.9, 1.0], list(RATIO))


def test_the_key_decides_the_view():
    pixels = np.array(photographs()["china"])
    config = DataConfig()
    first = augment(pixels, 11, config, 64)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 64, 64)
    assert torch.equal(first, augment(pixels, 11, config, 64))
    assert not torch.equal(first, augment(pixels, 12, config, 64))


def test_flip_mirrors_the_same_crop():
    pixels = np.array(photographs()["china"])
    always, never = (augment(pixels, 11, DataConfig(flip=p), 64) for p in (1.0, 0.0))
    assert torch.equal(always, never.flip(-1))
    flipped = sum(
        torch.equal(augment(pixels, k, DataConfig(), 8), augment(pixels, k, DataConfig(flip=1.0), 8))
        for k in range(400)
    )
    assert 150 < flipped < 250  # 400 fair coins leave this range once in 10^6


def test_a_crop_of_the_target_size_is_not_resampled():
    pixels = np.array(photographs()["rocket"])
    view = crop_and_resize(pixels, Box(10, 20, 64, 64), 64)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), pixels[10:74, 20:84])
