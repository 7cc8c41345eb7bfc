"""Ranks shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.distributed import RankPool


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks
