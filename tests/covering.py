"""A few rows of a matrix that together show all that its rows show, for suites that cannot afford every combination."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import pytest

Row = TypeVar("Row")


def covering(rows: Sequence[Row], shows: Callable[[Row], Iterable[Hashable]]) -> list[Row]:
    """Rows, in their order, that show all that is to be seen: again and again the one that shows most of what is
    missing."""
    shown = [set(shows(row)) for row in rows]
    missing = set().union(*shown)
    chosen = set()
    while missing:
        best = max(range(len(rows)), key=lambda number: len(shown[number] & missing))
        chosen.add(best)
        missing -= shown[best]
    return [rows[number] for number in sorted(chosen)]


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
