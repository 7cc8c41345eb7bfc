"""Image files that somebody names, to look at."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.errors import BadInput


def read_image_file(path: Path, option: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. EXIF orientations are ignored, as in training.

    Raises `BadInput`, with the `option` that named the file."""
    try:
        return decode_rgb(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{option} {path}: cannot be read ({error.strerror}); give another file, or mend that") from None
    except UndecodableImage as error:
        raise BadInput(f"{option} {path}: {error}; give another file") from None
