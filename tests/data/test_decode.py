"""Decoding gives Pillow's pixels, and an error where Pillow gives one."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.photographs import jpeg_bytes, odd_files, photographs
from trainer.data.decode import UndecodableImage, decode_rgb


def pillow_rgb(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", sorted(photographs()))
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_photographs_decode_bit_for_bit_as_with_pillow(name, subsampling):
    content = jpeg_bytes(photographs()[name], quality=95, subsampling=subsampling)
    assert np.array_equal(decode_rgb(content), pillow_rgb(content))


@pytest.mark.parametrize("name", sorted(odd_files()))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_odd_files_decode_as_with_pillow(name):
    content = odd_files()[name]
    pixels = decode_rgb(content)
    assert pixels.dtype == np.uint8
    # CMYK to RGB is a product that the two round differently.
    tolerance = 1 if name.startswith("cmyk") else 0
    assert np.abs(pixels.astype(int) - pillow_rgb(content)).max() <= tolerance


def test_exif_orientation_is_ignored():
    assert decode_rgb(odd_files()["rotated_by_exif.jpg"]).shape == (150, 200, 3)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:40], lambda c: b"", lambda c: b"not an image" * 99]
)
def test_what_is_no_whole_image_is_an_error(damage):
    content = jpeg_bytes(photographs()["coffee"])
    with pytest.raises(UndecodableImage):
        decode_rgb(damage(content))
