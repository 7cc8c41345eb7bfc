"""A few rows of a matrix that together show all that its rows show, for suites that cannot afford every combination."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import pytest

Row = TypeVar("Row")


def covering(rows: Sequence[Row], shows: Callable[[Row], Iterable[Hashable]]) -> list[Row]:
    """The rows, in order, that show something which no row before them does."""
    seen: set[Hashable] = set()
    chosen = []
    for row in rows:
        shown = set(shows(row))
        if not shown <= seen:
            chosen.append(row)
            seen |= shown
    return chosen


def slow_and_exhaustive(
    rows: Sequence[Row], shows: Callable[[Row], Iterable[Hashable]], fast: Callable[[Row], bool] = lambda row: False
) -> list:
    """Parameters for pytest: rows that are `fast` unmarked, those that cover the rest slow, all others exhaustive."""
    slow = covering([row for row in rows if not fast(row)], shows)

    def marks(row: Row) -> list:
        if fast(row):
            return []
        return [pytest.mark.slow] if row in slow else [pytest.mark.exhaustive]

    return [pytest.param(row, marks=marks(row), id=str(row)) for row in rows]
