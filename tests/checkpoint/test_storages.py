"""Which ranks share a folder is found out by looking, and no two runs work on any one of its storages."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoint.own_disks import hold, hold_until_another_has_tried, leaders
from tests.distributed import RankPool
from trainer.run_lock import RunLock


def folders(tmp_path: Path, names: str) -> list[str]:
    """'abb': a folder for each rank, of which the last two share one. 'A' is another name of 'a'."""
    if "A" in names:
        (tmp_path / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "A").symlink_to(tmp_path / "a")
    return [str(tmp_path / name / "run") for name in names]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("aaa", (0, 0, 0)),
        ("abb", (0, 1, 1)),
        ("aba", (0, 1, 0)),
        ("abc", (0, 1, 2)),
        ("aAb", (0, 0, 2)),  # mounted under two names
    ],
)
def test_ranks_are_grouped_by_the_folder_that_they_see(
    three_ranks: RankPool, tmp_path: Path, names: str, found: tuple[int, ...]
) -> None:
    assert three_ranks.run(leaders, folders(tmp_path, names)) == [found] * 3
    assert not [path for path in tmp_path.rglob("*") if path.name not in "aA"]  # nothing is left of the search


def test_a_machine_that_cannot_make_the_folder_is_named_by_all(three_ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("no folder")
    b = tmp_path / "b" / "run"
    refusal = f"rank 1 on node-b: --output {b}: cannot be written (Not a directory): choose another, or mend that"
    assert three_ranks.run(leaders, folders(tmp_path, "abb")) == [refusal] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["b"]  # what rank 0 had made by then is gone


def test_a_machine_that_sees_the_folder_but_may_not_write_into_it_is_named(
    three_ranks: RankPool, tmp_path: Path
) -> None:
    shared, read_only = tmp_path / "a", tmp_path / "r"
    for folder in (shared / "run", read_only):
        folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "--bind", shared, read_only], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a folder cannot be mounted twice here: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", read_only], check=True)
        (outcome, *others) = three_ranks.run(leaders, folders(tmp_path, "aar"))
    finally:
        subprocess.run(["umount", "--lazy", read_only], check=True)
    assert outcome.startswith(f"rank 2 on node-r: --output {read_only}/run: cannot be written (Permission denied)")
    assert others == [outcome] * 2


def test_each_storage_is_locked_once(three_ranks: RankPool, tmp_path: Path) -> None:
    assert three_ranks.run(hold, folders(tmp_path, "abb")) == [["lock"]] * 3
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(("taken", "rank"), [("a", 0), ("b", 1)])
def test_a_run_that_works_on_one_of_the_machines_keeps_another_out_of_all(
    three_ranks: RankPool, tmp_path: Path, taken: str, rank: int
) -> None:
    output = tmp_path / taken / "run"
    output.mkdir(parents=True)
    lock = RunLock(output, pytest.fail)
    outcome, *others = three_ranks.run(hold, folders(tmp_path, "abb"))
    lock.release()
    named = f"rank {rank} on node-{taken}: " if rank else ""
    assert re.match(rf"{named}--output {output}: the run on .* works there; stop it", outcome)
    assert others == [outcome] * 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([taken, "run"])  # and holds no lock elsewhere


def test_of_two_runs_that_start_at_once_one_gets_in(two_ranks: RankPool, three_ranks: RankPool, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        for number in range(8):
            place = tmp_path / str(number)
            place.mkdir()
            told = [str(place / "tried_1"), str(place / "tried_2")]
            first = threads.submit(two_ranks.run, hold_until_another_has_tried, folders(place, "ab"), *told)
            second = threads.submit(three_ranks.run, hold_until_another_has_tried, folders(place, "abb"), *told[::-1])
            outcomes = [first.result(), second.result()]
            assert sorted(outcome[0] == "in" for outcome in outcomes) == [False, True], outcomes
            for outcome in outcomes:
                assert len(set(outcome)) == 1
