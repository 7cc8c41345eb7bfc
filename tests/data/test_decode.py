"""Decoding gives Pillow's pixels, and an error where Pillow gives one."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.photographs import jpeg_bytes, odd_files, photographs
from trainer.data.decode import MAX_PIXELS, UndecodableImage, decode_rgb


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


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def more_odd_files() -> dict[str, bytes]:
    """What else people have in their folders."""
    whole = photographs()["china"]
    tile = whole.crop((100, 40, 300, 190))
    return {
        "one pixel": jpeg_bytes(tile.crop((0, 0, 1, 1))),
        "smaller than a block": jpeg_bytes(tile.crop((0, 0, 5, 3))),
        "panorama": jpeg_bytes(whole.resize((4000, 90))),
        "pillar": jpeg_bytes(whole.resize((16, 3000))),
        "odd size": jpeg_bytes(tile.crop((0, 0, 127, 61)), subsampling=2),
        "grey progressive": jpeg_bytes(tile.convert("L"), progressive=True),
        "cmyk progressive": jpeg_bytes(tile.convert("CMYK"), progressive=True),
        "restart markers": jpeg_bytes(tile, restart_marker_blocks=3),
        "rgb without a transform": jpeg_bytes(tile, keep_rgb=True),
        "lowest quality": jpeg_bytes(tile, quality=1),
        "png with a palette": saved(tile.quantize(32), "PNG"),
        "png, grey and transparent": saved(tile.convert("LA"), "PNG"),
        "png of 16 bits": saved(Image.fromarray(np.asarray(tile.convert("L")).astype(np.uint16) * 257), "PNG"),
        "png of 1 bit": saved(tile.convert("1"), "PNG"),
        "webp": saved(tile, "WEBP"),
        "webp, lossless and transparent": saved(tile.convert("RGBA"), "WEBP", lossless=True),
        "gif": saved(tile.quantize(64), "GIF"),
        "bmp": saved(tile, "BMP"),
        "tiff": saved(tile, "TIFF"),
    }


@pytest.mark.parametrize("name", sorted(more_odd_files()))
def test_more_odd_files_decode_as_with_pillow(name):
    content = more_odd_files()[name]
    tolerance = 1 if name.startswith("cmyk") else 0
    assert np.abs(decode_rgb(content).astype(int) - pillow_rgb(content)).max() <= tolerance


def test_exif_orientation_is_ignored():
    assert decode_rgb(odd_files()["rotated_by_exif.jpg"]).shape == (150, 200, 3)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: c[:40], lambda c: b"", lambda c: b"not an image" * 99]
)
def test_what_is_no_whole_image_is_an_error(damage):
    content = jpeg_bytes(photographs()["coffee"])
    with pytest.raises(UndecodableImage):
        decode_rgb(damage(content))


def claimed_size(content: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose frame header is made to claim another size."""
    frame = content.index(b"\xff\xc0")
    return content[: frame + 5] + struct.pack(">HH", height, width) + content[frame + 9 :]


def png_of(width: int, height: int) -> bytes:
    """A few kB of PNG that are a white page of any size."""
    return saved(Image.new("1", (width, height), 1), "PNG")


@pytest.mark.parametrize(
    "content",
    [claimed_size(jpeg_bytes(photographs()["coffee"]), 65000, 65000), png_of(17_000, 16_000)],
    ids=["jpeg", "png"],
)
def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(content):
    tracemalloc.start()
    with pytest.raises(UndecodableImage, match=r"pixels|bomb"):
        decode_rgb(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_the_limit_leaves_room_for_large_photographs():
    assert MAX_PIXELS >= 16_000 * 12_000


def test_formats_that_pillow_hands_to_other_programs_are_not_opened():
    with pytest.raises(UndecodableImage, match="not an image"):
        decode_rgb(saved(photographs()["coffee"], "EPS"))
