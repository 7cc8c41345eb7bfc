"""A small corpus of real photographs for the benchmarks."""

from pathlib import Path

import pytest

from benchmarks.corpus import Corpus, make_corpus
from tests.photographs import write_class_folders


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six class folders of twenty JPEGs of about 160 x 120."""
    return write_class_folders(tmp_path_factory.mktemp("tiles"), per_class=20, width=160, height=120)


@pytest.fixture(scope="session")
def corpus(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tiles, 120, tmp_path_factory.mktemp("corpus"))
