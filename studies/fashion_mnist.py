"""Fashion-MNIST (arXiv 1708.07747) as WebDataset shards: 60,000 training and 10,000 test images of ten classes.

The 28×28 grey images come out of the Debian package `dataset-fashion-mnist` (MIT licence), which is downloaded by name
and unpacked, not installed. They are stored as JPEGs of quality 95, so that a run decodes files as it does elsewhere.
"""

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools.photograph_sources import FetchError, fetch_package, user_cache
from studies.shards import convert, is_made
from trainer.errors import BadInput

PACKAGE = "dataset-fashion-mnist"
CLASSES = ("t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
_FOLDER = "usr/share/datasets/fashion-mnist"
_FILES = {"train": "train", "validation": "t10k"}
_QUALITY = 95


def make_shards(output: Path, limit: int | None = None, classes: Sequence[int] = range(len(CLASSES))) -> Path:
    """Shards of both splits in the folder `output`, which stays as it is if it is there; of each split no more than
    `limit` images, and of those the ones of these classes.

    Raises `BadInput` where the package cannot be fetched."""
    if is_made(output):
        return output
    images = output.with_name(f"{output.name}_images")
    _write_images(_unpacked_package(), images, limit, classes)
    return convert(images, output)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in a gzipped IDX file, MNIST's format: two zero bytes, type 8, dimensions, their sizes.

    Raises `BadInput` for another file."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError):
        content = b""
    if content[:3] != b"\0\0\x08":
        raise BadInput(f"{path} is no gzipped IDX file of bytes: delete {path.parents[4]} and start again")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def _unpacked_package() -> Path:
    root = user_cache("studies") / PACKAGE
    try:
        if not root.is_dir():
            fetch_package(PACKAGE, root)
    except (FetchError, OSError) as error:
        raise BadInput(
            f"Fashion-MNIST cannot be fetched ({error}): the study takes it from the Debian package {PACKAGE}; unpack "
            f"that as {root} (dpkg-deb -x FILE.deb {root}), and start again"
        ) from None
    return root / _FOLDER


def _write_images(package: Path, output: Path, limit: int | None, classes: Sequence[int]) -> None:
    shutil.rmtree(output, ignore_errors=True)
    for split, name in _FILES.items():
        pixels = read_idx(package / f"{name}-images-idx3-ubyte.gz")[:limit]
        labels = read_idx(package / f"{name}-labels-idx1-ubyte.gz")[:limit]
        folders = {label: output / split / f"{label}_{CLASSES[label]}" for label in classes}
        for folder in folders.values():
            folder.mkdir(parents=True)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            if label in folders:
                Image.fromarray(image).save(folders[label] / f"{number:05d}.jpg", quality=_QUALITY)
