"""What a shortened matrix still shows."""

from itertools import product

from tests.covering import covering
from tests.engine import resume_matrix, test_trajectory, trajectory


def test_covering_rows_show_every_pair_but_not_every_row() -> None:
    rows = list(product("abc", "xyz", "12"))
    chosen = covering(rows, lambda row: [row[:2], row[1:]])
    assert {row[:2] for row in chosen} == set(product("abc", "xyz"))
    assert {row[1:] for row in chosen} == set(product("xyz", "12"))
    assert len(chosen) < len(rows)


def test_the_shortened_matrices_show_what_the_whole_ones_do() -> None:
    for rows, shows in (
        (resume_matrix.MATRIX, resume_matrix.shows),
        (trajectory.MATRIX, test_trajectory.shows),
        (trajectory.OFFLOADED, test_trajectory.shows),
    ):
        chosen = covering(rows, shows)
        assert len(chosen) < 0.7 * len(rows)
        assert {what for row in chosen for what in shows(row)} == {what for row in rows for what in shows(row)}


def test_a_row_that_shows_more_goes_before_rows_that_come_first() -> None:
    assert covering(["ab", "cd", "abcd", "e"], set) == ["abcd", "e"]
