"""A rank shared by the tests of this folder: starting one costs as much as several small trainings."""

from collections.abc import Iterator

import pytest

from tests.distributed import RankPool


@pytest.fixture(scope="session")
def one_rank() -> Iterator[RankPool]:
    with RankPool(1) as ranks:
        yield ranks
