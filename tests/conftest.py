"""Photographs, shards and ranks that the tests of several packages share.

Files are made once: treat them as read-only. Starting ranks costs as much as twenty cases on them, so all tests use the
same; a pool starts its ranks at the first case, and fresh ones after a failure."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import RankPool
from tests.photographs import odd_files, write_class_folders
from tests.uneven_shards import write_uneven_shards

# Where the 150 samples are cut into shards: uneven on purpose, one shard holding a single sample.
SHARD_EDGES = (0, 41, 42, 60, 97, 105, 150)


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven class folders: four tiles (160 x 120) of each of six photographs, and `odd`, which holds a
    grey, a CMYK, a progressive and an EXIF-rotated JPEG, a PNG named .JPEG, and more of the kind."""
    root = write_class_folders(tmp_path_factory.mktemp("photographs"), per_class=4, width=160, height=120)
    (root / "odd").mkdir()
    for name, content in odd_files().items():
        (root / "odd" / name).write_bytes(content)
    return root


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 150 samples of six classes (tiles of about 160 x 120) in six uneven shards, and their index."""
    folder = write_class_folders(tmp_path_factory.mktemp("tiles"), per_class=25, width=160, height=120)
    directory = tmp_path_factory.mktemp("shards")
    write_uneven_shards(directory, "train", folder, SHARD_EDGES)
    return directory


@pytest.fixture(scope="session")
def one_rank() -> Iterator[RankPool]:
    with RankPool(1) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def three_ranks() -> Iterator[RankPool]:
    with RankPool(3) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[RankPool]:
    with RankPool(4) as ranks:
        yield ranks
