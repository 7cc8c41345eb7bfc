"""Ranks shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.distributed import RankPool


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def one_rank() -> Iterator[RankPool]:
    with RankPool(1) as ranks:
        yield ranks
