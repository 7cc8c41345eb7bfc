"""Ranks that stop moving, through real launchers: who stands where is told, and the run ends by itself."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.running import Run

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", shards) as run:
        yield run


@EXHAUSTIVE
def test_a_stopped_process_is_named_with_its_last_step(run: Run) -> None:
    run.start("deepspeed", "train.hang_timeout=8s", "train.epochs=40")
    run.wait_for_step(8)
    run.rank(1).send_signal(signal.SIGSTOP)
    assert run.end(timeout=120) == 1
    assert "hang: no progress for 8 s (train.hang_timeout); this is rank 0, in step" in run.printed
    assert "rank 1: last seen in step" in run.printed
    assert "its process is stopped or gone <- behind" in run.printed


@SLOW
def test_a_stopped_rank_zero_which_serves_the_store_is_named_too(run: Run) -> None:
    run.start("torchrun", "train.hang_timeout=8s", "train.epochs=40")
    run.wait_for_step(8)
    run.rank(0).send_signal(signal.SIGSTOP)
    assert run.end(timeout=120) == 1
    assert "this is rank 1, in step" in run.printed
    assert "rank 0 does not answer: its process is stopped or gone" in run.printed


@pytest.mark.parametrize(
    ("fault", "line", "code"),
    [
        pytest.param("sleep:5", "  rank 1: in step 5, forward", "in faulty_forward", marks=EXHAUSTIVE),
        # one place, told apart by the stacks
        pytest.param("skip:5", "  rank 0-1: in step 5, backward", "in faulty_backward", marks=SLOW),
    ],
)
def test_a_rank_that_does_not_come_to_a_collective_is_named_by_all(run: Run, fault: str, line: str, code: str) -> None:
    run.start("deepspeed", "train.hang_timeout=8s", fault=fault)
    assert run.end(timeout=120) == 1
    for rank in (0, 1):
        assert f"this is rank {rank}, in step 5" in run.printed
        assert f"rank {rank} stands at:" in run.printed
    assert line in run.printed
    assert code in run.printed.split("rank 1 stands at:")[1]


@SLOW
def test_a_rank_that_raises_is_named_by_the_others(run: Run) -> None:
    run.start("torchrun", fault="raise:5")
    assert run.end(timeout=120) == 1
    assert "RuntimeError: the fault of this test" in run.printed
    assert "error on rank 0: rank 1 is gone, last seen in step" in run.printed
