"""The watchdog's report, and its alarm on real ranks of which one does not come."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankFailure, run_on_ranks
from trainer.watchdog import Mark, Watchdog, collective_timeout, describe


def marks(*places: tuple[int, int, str], beat: int) -> dict[int, Mark]:
    return {rank: Mark(number, step, place, 30.0, beat) for rank, (number, step, place) in enumerate(places)}


def test_ranks_at_one_place_share_a_line_and_those_behind_come_first() -> None:
    places = (90, 7, "backward"), (90, 7, "backward"), (88, 7, "data"), (90, 7, "backward")
    assert describe(marks(*places, beat=1), marks(*places, beat=2)).splitlines() == [
        "  rank 2: in step 7, data, for 30 s <- behind",
        "  rank 0-1, 3: in step 7, backward, for 30 s",
    ]


def test_a_process_that_no_longer_publishes_is_named() -> None:
    before = marks((90, 7, "step"), (90, 7, "step"), beat=4)
    after = {0: Mark(90, 7, "step", 31.0, 5), 1: before[1]}
    assert "rank 1: last seen in step 7, step, for 30 s, its process is stopped or gone" in describe(before, after)
    assert "behind" not in describe(before, after)


def test_no_answer_from_the_store_blames_rank_zero() -> None:
    assert describe(None, None).startswith("rank 0 does not answer")


def test_torch_aborts_collectives_later_than_the_watchdog() -> None:
    for hang_timeout in (60.0, 1800.0, 86400.0):
        assert collective_timeout(hang_timeout).total_seconds() > hang_timeout
    assert collective_timeout(0.0).days > 100  # no limit of ours, none of torch's


def one_rank_skips_a_collective(timeout: float, directory: str) -> None:
    watchdog = Watchdog(timeout, Path(directory))
    watchdog.at("data", 5)
    if dist.get_rank() == 1:
        time.sleep(600)
    watchdog.at("backward", 5)
    dist.all_reduce(torch.zeros(1))


@pytest.mark.slow
def test_a_rank_that_skips_a_collective_ends_the_run_with_a_report(tmp_path: Path) -> None:
    with pytest.raises(RankFailure) as failure:
        run_on_ranks(one_rank_skips_a_collective, 2, 3.0, str(tmp_path), timeout=60)
    for expected in (
        "hang: no progress for 3 s (train.hang_timeout); this is rank",
        "rank 1: in step 5, data",
        "<- behind",
        "rank 0: in step 5, backward",
        "in one_rank_skips_a_collective",
    ):
        assert expected in str(failure.value)


def slow_rank_that_moves(timeout: float, directory: str) -> str:
    watchdog = Watchdog(timeout, Path(directory))
    for step in range(4):
        watchdog.at("data", step)
        time.sleep(timeout / 2)
    watchdog.close()
    return "alive"


@pytest.mark.slow
def test_slow_progress_is_no_hang(tmp_path: Path) -> None:
    assert run_on_ranks(slow_rank_that_moves, 2, 3.0, str(tmp_path)) == ["alive", "alive"]


def stopped_and_continued(timeout: float, directory: str) -> str:
    """Both ranks stand still at the same time, as under a scheduler that suspends a job; then they go on."""
    watchdog = Watchdog(timeout, Path(directory))
    watchdog.at("data", 1)
    time.sleep(2)  # both watchdogs look once before
    sleeper = subprocess.Popen([sys.executable, "-c", RESUMER, str(os.getpid()), str(timeout + 8)])
    os.kill(os.getpid(), signal.SIGSTOP)
    sleeper.wait()
    time.sleep(timeout / 2)
    watchdog.at("data", 2)
    dist.barrier()
    watchdog.close()
    return "alive"


RESUMER = "import os, signal, sys, time; time.sleep(float(sys.argv[2])); os.kill(int(sys.argv[1]), signal.SIGCONT)"


@pytest.mark.slow
def test_a_run_that_was_suspended_goes_on(tmp_path: Path) -> None:
    assert run_on_ranks(stopped_and_continued, 2, 4.0, str(tmp_path)) == ["alive", "alive"]
