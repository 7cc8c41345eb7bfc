"""JPEG bytes to pixels, the same pixels as Pillow's, at the speed of libjpeg-turbo."""

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# 800 MB of RGB; the largest image of ImageNet has a quarter of that. A file of a few kB can claim 65,500 × 65,500.
MAX_PIXELS = 2**28
# Not all that Pillow knows: some of its readers start other programs (EPS), none of the rest is a photograph.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000")


class UndecodableImage(ValueError):
    """Neither decoder makes an image of these bytes, or it would be larger than MAX_PIXELS."""


def decode_rgb(content: bytes) -> NDArray[np.uint8]:
    """An image file's pixels, uint8 [height, width, 3] RGB.

    simplejpeg decodes bit for bit as Pillow does and saves its copies. In strict mode it refuses what is not a flawless
    JPEG; Pillow then has the last word, which reads other formats and mends what can be mended. An EXIF orientation is
    ignored, as is the practice in pre-training on ImageNet.

    An image whose header claims more than MAX_PIXELS is refused before any of its pixels takes memory.

    Raises UndecodableImage."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content, strict=True)
        _refuse_huge(width, height)
        return simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)
    except UndecodableImage:
        raise
    except ValueError:
        return _decode_with_pillow(content)


def _decode_with_pillow(content: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():  # Pillow warns of a bomb at a third of our limit
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _refuse_huge(*image.size)
                return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"not an image ({', '.join(FORMATS)})") from error
    except UndecodableImage:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UndecodableImage(f"not decodable: {error}") from error


def _refuse_huge(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UndecodableImage(f"{width} × {height} pixels, more than the {MAX_PIXELS} that are decoded")
