"""What the study of going on sees: images that weights were trained on, and new ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from studies import fashion_mnist, photograph_tiles

SHOES_AND_BAGS, CLOTHES = (5, 7, 8, 9), (0, 1, 2, 3, 4, 6)
"""Classes of Fashion-MNIST, all ten of them."""


@dataclass(frozen=True)
class ContinuedSet:
    """`make_old` and `make_new`: shards into a folder, of each split at most so many images."""

    name: str
    title: str
    make_old: Callable[[Path, int | None], Path]
    make_new: Callable[[Path, int | None], Path]


CONTINUED_SETS = (
    ContinuedSet(
        "clothes",
        "Fashion-MNIST, from shoes and bags to clothes",
        partial(fashion_mnist.make_shards, classes=SHOES_AND_BAGS),
        partial(fashion_mnist.make_shards, classes=CLOTHES),
    ),
    ContinuedSet(
        "photographs",
        "Grey tiles, from one half of the photographs to the other",
        partial(photograph_tiles.make_shards, chosen=photograph_tiles.EVEN),
        partial(photograph_tiles.make_shards, chosen=photograph_tiles.ODD),
    ),
)
