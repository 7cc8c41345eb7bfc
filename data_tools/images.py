"""What an image file really holds, whatever its name says, and the bytes that go into a shard for it."""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from trainer.data.decode import FORMATS, UndecodableImage, decode_rgb

# Pillow calls a JPEG with further images appended to it an MPO. Decoders see the first one.
_JPEG_FORMATS = ("JPEG", "MPO")
# libjpeg's limit; what is transcoded has to fit.
_MAX_SIDE = 65_500
_TRANSCODED_QUALITY = 100
_RESIZED_QUALITY = 95


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say."""

    format: str
    mode: str
    bands: int
    width: int
    height: int

    @property
    def stored_as_is(self) -> bool:
        """Whether the file is a grey or colour JPEG. Other formats, and JPEGs of four components (CMYK, which decoders
        convert each in its own way), are not stored but transcoded."""
        return self.format in _JPEG_FORMATS and self.bands in (1, 3)

    @property
    def description(self) -> str:
        """E.g. "PNG RGBA"."""
        return f"{self.format} {self.mode}"

    def is_longer_than(self, short_side: int | None) -> bool:
        """Whether the image is to be resized for a shorter side of so many pixels."""
        return short_side is not None and min(self.width, self.height) > short_side


@dataclass(frozen=True)
class ShardImage:
    """A JPEG for a shard. `transcoded_from` names what it was before, `resized_from` its width and height then (None:
    it was a JPEG, of this size; if both are None these are the original bytes)."""

    content: bytes
    width: int
    height: int
    transcoded_from: str | None
    resized_from: tuple[int, int] | None


def read_header(content: bytes) -> ImageHeader:
    """The header of an image file, whose first bytes may be all of `content`.

    Raises UndecodableImage if it is damaged or cut off, or claims more pixels than Pillow accepts (179 million)."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            header = ImageHeader(image.format or "", image.mode, len(image.getbands()), image.width, image.height)
    except UnidentifiedImageError as error:
        raise UndecodableImage("not an image, or cut off within its header") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableImage(f"unusable header: {error}") from error
    if not 0 < min(header.width, header.height) <= max(header.width, header.height) <= _MAX_SIDE:
        raise UndecodableImage(f"{header.width} x {header.height} pixels: sides of 1 to {_MAX_SIDE} can be used")
    return header


def shard_image(content: bytes, short_side: int | None = None) -> ShardImage:
    """The JPEG to store for an image file: its own bytes, untouched, if it is a grey or colour JPEG.

    What is no such JPEG becomes an RGB JPEG of quality 100 without chroma subsampling. With `short_side`, images whose
    shorter side is longer are resized to it (Lanczos) and stored as RGB JPEGs of quality 95. An EXIF orientation is
    neither applied nor, in untouched files, removed.

    Raises UndecodableImage."""
    header = read_header(content)
    resize = header.is_longer_than(short_side)
    if header.stored_as_is and not resize:
        return ShardImage(content, header.width, header.height, None, None)
    image = Image.fromarray(decode_rgb(content))
    original_size = image.size
    if resize:
        assert short_side is not None
        scale = short_side / min(original_size)
        image = image.resize(
            (round(original_size[0] * scale), round(original_size[1] * scale)), Image.Resampling.LANCZOS
        )
    stream = io.BytesIO()
    quality = _RESIZED_QUALITY if resize and header.stored_as_is else _TRANSCODED_QUALITY
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return ShardImage(
        stream.getvalue(),
        image.width,
        image.height,
        None if header.stored_as_is else header.description,
        original_size if resize else None,
    )
