"""A continued run is the uninterrupted one: bit for bit on the same layout, to rounding on another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.covering import slow_and_exhaustive
from tests.distributed import RankPool
from tests.engine.resume_matrix import MATRIX, Row, difference, shows


@pytest.fixture
def pool(one_rank: RankPool, two_ranks: RankPool, four_ranks: RankPool) -> Callable[[int], RankPool]:
    return {1: one_rank, 2: two_ranks, 4: four_ranks}.__getitem__


@pytest.mark.parametrize("row", slow_and_exhaustive(MATRIX, shows))  # test_resume.py has fast ones
def test_a_continued_run_equals_the_uninterrupted_one(
    pool: Callable[[int], RankPool], row: Row, tmp_path: Path
) -> None:
    losses, weights = difference(row, pool, tmp_path / "checkpoints")
    assert weights <= row.tolerance
    assert losses <= row.loss_tolerance
