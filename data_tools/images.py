"""What an image file really holds, whatever its name says, and the bytes that go into a shard for it."""

import io
from dataclasses import dataclass

from PIL import Image

from trainer.data.decode import UndecodableImage, decode_rgb


@dataclass(frozen=True)
class ShardImage:
    """A JPEG for a shard. `transcoded_from` names what it was before (None: the original bytes)."""

    content: bytes
    width: int
    height: int
    transcoded_from: str | None


def check_image(content: bytes) -> str | None:
    """Why training could not use this file, or None if it can: the image is decoded as training will decode it."""
    try:
        decode_rgb(content)
    except UndecodableImage as error:
        return str(error)
    return None


def shard_image(content: bytes) -> ShardImage:
    """The JPEG to store for an image file: its own bytes, untouched, if it is a grey or colour JPEG.

    Other formats and four-component JPEGs (CMYK, which decoders convert each in its own way) become RGB JPEGs of
    quality 100 without chroma subsampling. An EXIF orientation is neither applied nor, in untouched files, removed."""
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "JPEG" and len(image.getbands()) in (1, 3):
            return ShardImage(content, image.width, image.height, None)
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=100, subsampling=0)
        return ShardImage(stream.getvalue(), image.width, image.height, f"{image.format} {image.mode}")
