"""Shards whose classes can be told from a picture: every class has its colour, and each image its own shade of it."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.uneven_shards import write_uneven_shards

COLOURS = np.array([(220, 40, 40), (40, 200, 60), (50, 70, 220), (220, 210, 50), (190, 60, 200)])
EDGES = {"train": (0, 1, 38, 39, 83, 100), "val": (0, 17, 18, 35)}
"""Where the samples are cut into shards: uneven on purpose."""


def paint(folder: Path, per_class: int, seed: int) -> None:
    """JPEGs of 48 x 40 in a folder for each class."""
    random = np.random.default_rng(seed)
    for label, colour in enumerate(COLOURS):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(per_class):
            noise = random.normal(0, 6, (40, 48, 3)) + random.normal(0, 8, 3)
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class_{label}" / f"{number}.JPEG", quality=95)


def write_painted_shards(directory: Path, scratch: Path) -> None:
    """`train`: 20 images of each class, `val`: 7, shuffled."""
    for seed, (split, edges) in enumerate(EDGES.items()):
        paint(scratch / split, edges[-1] // len(COLOURS), seed)
        write_uneven_shards(directory, split, scratch / split, edges, seed)


def painted_class(image: np.ndarray) -> int:
    """uint8 [3, H, W] → the class whose colour it has."""
    return int(np.abs(COLOURS - image.reshape(3, -1).mean(1)).sum(1).argmin())
