"""Natural images in the size of Fashion-MNIST's: small tiles of the demo's photographs, as WebDataset shards.

Every photograph is a class and gives 108 tiles, 12 by 9; which photograph a tile is from is the label. A quarter of the
tiles, spread evenly over each photograph, is held out. The tiles are grey, their histograms equalised: in colour an
untrained network tells photographs apart better than a trained one, by what gradients do not show.
"""

import shutil
from pathlib import Path

from PIL import Image, ImageOps

from data_tools.photograph_sources import FetchError, debian_photographs, packaged_photographs, user_cache
from studies.shards import convert, is_made

TILE = 40
"""Pixels of a side: a random crop of 60 to 100 % of its area has 31 to 40."""
COLUMNS, ROWS = 12, 9
_HELD_OUT_EVERY = 4
_QUALITY = 95
ALL, EVEN, ODD = slice(None), slice(0, None, 2), slice(1, None, 2)
"""Of the photographs: all, and two halves."""


def make_shards(output: Path, limit: int | None = None, chosen: slice = ALL) -> Path:
    """Shards of both splits in the folder `output`, which stays as it is if it is there; of the `chosen` photographs,
    and of each split no more than `limit` tiles, but one of each photograph."""
    if is_made(output):
        return output
    try:
        photographs = debian_photographs(user_cache("photographs"))
    except FetchError:  # as `data_tools photographs` does
        photographs = packaged_photographs()
    photographs = photographs[chosen]
    images = output.with_name(f"{output.name}_images")
    shutil.rmtree(images, ignore_errors=True)
    most = None if limit is None else max(1, limit // len(photographs))
    for path in photographs:
        _write_tiles(path, images, most)
    return convert(images, output)


def is_held_out(row: int, column: int) -> bool:
    """No two of these tiles share a side, and each row has as many."""
    return (column + 2 * row) % _HELD_OUT_EVERY == 0


def _write_tiles(photograph: Path, output: Path, most: int | None) -> None:
    with Image.open(photograph) as file:
        image = ImageOps.fit(file.convert("RGB"), (COLUMNS * TILE, ROWS * TILE), Image.Resampling.LANCZOS)
    cells = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    for split, held_out in (("train", False), ("validation", True)):
        folder = output / split / photograph.stem
        folder.mkdir(parents=True)
        for row, column in [cell for cell in cells if is_held_out(*cell) == held_out][:most]:
            left, top = column * TILE, row * TILE
            tile = ImageOps.equalize(image.crop((left, top, left + TILE, top + TILE)).convert("L")).convert("RGB")
            tile.save(folder / f"{row}_{column:02d}.jpg", quality=_QUALITY)
