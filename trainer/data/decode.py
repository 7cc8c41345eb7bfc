"""JPEG bytes to pixels, the same pixels as Pillow's, at the speed of libjpeg-turbo."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError


class UndecodableImage(ValueError):
    """Neither decoder makes an image of these bytes."""


def decode_rgb(content: bytes) -> NDArray[np.uint8]:
    """An image file's pixels, uint8 [height, width, 3] RGB.

    simplejpeg decodes bit for bit as Pillow does and saves its copies. In strict mode it refuses what is not a flawless
    JPEG; Pillow then has the last word, which reads other formats and mends what can be mended. An EXIF orientation is
    ignored, as is the practice in pre-training on ImageNet.

    Raises UndecodableImage."""
    try:
        return simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)
    except ValueError:
        return _decode_with_pillow(content)


def _decode_with_pillow(content: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UndecodableImage("not an image in a format that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableImage(f"not decodable: {error}") from error
