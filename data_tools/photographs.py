"""Gathers real photographs for trying things out, as a folder of class folders of ImageNet-sized JPEGs.

Takes the photographs in the Debian packages `lomiri-wallpapers-16.04` and `scratch` (Creative Commons licences;
downloaded, not installed), or, where apt-get is missing or fails, those inside scikit-image and scikit-learn. Large
photographs are cut into tiles. Each photograph is a class, so that there are labels to evaluate on."""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_tools.arguments import picture_size, positive
from data_tools.photograph_sources import FetchError, debian_photographs, packaged_photographs, user_cache
from trainer.errors import BadInput

SUMMARY = "gather real photographs as a folder of class folders"

_QUALITY = 95
# Mean difference between neighbouring grey values (of 255, at half size, so that noise counts for less) under which a
# tile shows next to nothing: a clear sky, a blurred background.
_LEAST_DETAIL = 2.0
# The few photographs of the fallback are seen through a sliding window of half their width and height, in steps of an
# eighth: 25 overlapping views of each.
_VIEWS_PER_SIDE = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--cache", type=Path, help="for downloads (default: in $XDG_CACHE_HOME or ~/.cache)")
    parser.add_argument("--size", type=picture_size, default=(500, 375), help="of the tiles (default: 500x375)")
    parser.add_argument("--limit", type=positive, help="stop after so many tiles")


def run(arguments: argparse.Namespace) -> None:
    """Makes the folder, all of it or nothing. An output that exists is kept as it is.

    Raises BadInput if there are no photographs to be had, or if it cannot be written."""
    output: Path = arguments.output
    try:
        _gather(arguments, output)
    except OSError as error:
        raise BadInput(f"--output {output} cannot be made ({error}): mend that, or choose another") from error


def _gather(arguments: argparse.Namespace, output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        print(f"{output} is there already and kept as it is; delete it to gather the photographs anew", file=sys.stderr)
        return
    try:
        photographs, overlapping = debian_photographs(arguments.cache or user_cache("photographs")), False
    except FetchError as error:
        print(f"no Debian packages ({error}): taking scikit-image's and scikit-learn's photographs", file=sys.stderr)
        photographs, overlapping = packaged_photographs(), True
    unfinished = output.with_name(output.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    count = write_tiles(photographs, unfinished, arguments.size, overlapping=overlapping, limit=arguments.limit)
    if output.is_dir():
        output.rmdir()
    unfinished.rename(output)
    print(f"{output}: {count} tiles of {len(photographs)} photographs")


def write_tiles(
    photographs: Sequence[Path], output: Path, size: tuple[int, int], *, overlapping: bool, limit: int | None
) -> int:
    """Cuts photographs into JPEGs of `size` (width, height) and writes them as class folders; returns how many."""
    count = 0
    for path in tqdm(photographs, desc="cutting photographs", unit="photo"):
        folder = output / re.sub(r"[^a-z0-9]+", "_", path.stem.lower())
        folder.mkdir(parents=True)
        with Image.open(path) as photograph:
            image = photograph.convert("RGB")
        views = _overlapping_views(image) if overlapping else _tiles(image, size)
        for number, view in enumerate(views):
            if count == limit:
                return count
            view.save(folder / f"{folder.name}_{number:03d}.jpg", quality=_QUALITY)
            count += 1
    return count


def _tiles(image: Image.Image, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Tiles that show something, from the photograph at full size, at half, at a quarter …, and at last the whole of it
    in one. Those of one scale do not overlap."""
    width, height = size
    while image.width >= 2 * width and image.height >= 2 * height:
        yield from (tile for tile in _grid(image, width, height) if _detail(tile) >= _LEAST_DETAIL)
        image = image.reduce(2)
    image.thumbnail(size, Image.Resampling.LANCZOS)
    yield image


def _grid(image: Image.Image, width: int, height: int) -> Iterator[Image.Image]:
    """As many tiles as fit side by side; the margin that is left over lies evenly around them."""
    columns, rows = image.width // width, image.height // height
    left, top = (image.width - columns * width) // 2, (image.height - rows * height) // 2
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * width, top + row * height
            yield image.crop((x, y, x + width, y + height))


def _detail(tile: Image.Image) -> float:
    grey = np.asarray(tile.convert("L").reduce(2), dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def _overlapping_views(image: Image.Image) -> Iterator[Image.Image]:
    width, height = image.width // 2, image.height // 2
    for row in range(_VIEWS_PER_SIDE):
        for column in range(_VIEWS_PER_SIDE):
            x = column * (image.width - width) // (_VIEWS_PER_SIDE - 1)
            y = row * (image.height - height) // (_VIEWS_PER_SIDE - 1)
            yield image.crop((x, y, x + width, y + height))
