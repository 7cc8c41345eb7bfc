"""Signals to any process of a run, kills of any rank at any moment, time that is up: what is saved and what goes on."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.running import Run, assert_same_run
from trainer.checkpoint.manifest import list_checkpoints, verify

SLOW, EXHAUSTIVE = pytest.mark.slow, pytest.mark.exhaustive
GRACE_SECONDS = 30
"""What the launchers leave their ranks between SIGTERM and SIGKILL."""


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", shards) as run:
        yield run


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """The same training, left alone."""
    with Run(tmp_path_factory.mktemp("reference") / "run", shards) as run:
        run.start("deepspeed")
        assert run.end() == 0, run.printed[-3000:]
        return run


@SLOW
def test_a_run_whose_time_is_up_saves_and_can_go_on(run: Run) -> None:
    run.start("python", "train.stop_after=1s", "train.epochs=1")  # it takes longer to start
    assert run.end() == 75
    assert "stopped at step 2 (train.stop_after)" in run.printed
    run.start("python", "train.stop_after=1h", "train.epochs=1")
    assert run.end() == 0, run.printed[-3000:]
    assert sorted(run.losses()) == list(range(1, 19))


@pytest.mark.parametrize(
    ("launcher", "number", "target", "code"),
    [  # torchrun has one code for all that is not 0; a scheduler signals the launcher: 1, whatever its ranks say
        pytest.param("deepspeed", signal.SIGUSR1, "rank 1", 75, marks=SLOW),
        pytest.param("deepspeed", signal.SIGINT, "rank 0", 75, marks=EXHAUSTIVE),
        pytest.param("deepspeed", signal.SIGTERM, "deepspeed.launcher.launch", 1, marks=EXHAUSTIVE),
        pytest.param("torchrun", signal.SIGTERM, "rank 1", 1, marks=EXHAUSTIVE),
        pytest.param("torchrun", signal.SIGINT, "rank 0", 1, marks=EXHAUSTIVE),
        pytest.param("torchrun", signal.SIGTERM, "launcher", 1, marks=EXHAUSTIVE),
        pytest.param("torchrun", signal.SIGINT, "launcher", 1, marks=SLOW),
    ],
    ids=str,
)
def test_a_signal_to_any_process_saves_at_one_step_on_all_ranks(
    run: Run, launcher: str, number: signal.Signals, target: str, code: int
) -> None:
    run.start(launcher, "train.epochs=40")
    run.wait_for_step(12)
    process = run.process(target)
    sent = time.monotonic()
    process.send_signal(number)
    assert run.end() == code, run.printed[-3000:]
    assert time.monotonic() - sent < GRACE_SECONDS
    newest = list_checkpoints(run.directory / "checkpoints")[0]
    manifest = verify(newest)
    assert manifest.world_size == 2
    assert manifest.step >= 12
    assert max(run.losses()) == manifest.step
    assert f"stopped at step {manifest.step} (" in run.printed
    assert "Traceback" not in run.printed.split("stopped at step")[0]


@SLOW
def test_one_ctrl_c_that_arrives_twice_at_once_still_saves(run: Run) -> None:
    run.start("python", "train.epochs=40")
    run.wait_for_step(3)
    for _ in range(2):
        run.launcher.send_signal(signal.SIGINT)
    assert run.end() == 75, run.printed[-3000:]


@pytest.mark.parametrize(
    ("launcher", "victim"),
    [
        pytest.param("deepspeed", 0, marks=EXHAUSTIVE),
        pytest.param("deepspeed", 1, marks=EXHAUSTIVE),
        pytest.param("torchrun", 0, marks=SLOW),
        pytest.param("torchrun", 1, marks=EXHAUSTIVE),
    ],
)
def test_survivors_of_a_killed_rank_say_which_and_end_and_the_run_goes_on_to_the_same_bits(
    run: Run, reference: Run, launcher: str, victim: int
) -> None:
    moment = random.Random(f"{launcher} {victim}")
    run.start(launcher)
    run.wait_for_step(moment.randrange(7, 35))
    time.sleep(moment.random() * 0.2)
    run.rank(victim).kill()
    assert run.end() not in (0, 75)
    assert f"error on rank {1 - victim}: rank {victim} is gone" in run.printed
    run.start(launcher)
    assert run.end() == 0, run.printed[-3000:]
    assert_same_run(run, reference)


@pytest.mark.parametrize("victims", [pytest.param("1", marks=EXHAUSTIVE), pytest.param("all", marks=SLOW)])
def test_a_kill_in_the_middle_of_a_freeze_loses_nothing(run: Run, reference: Run, victims: str) -> None:
    run.start("deepspeed", fault=f"kill-freeze:{victims}")
    assert run.end() not in (0, 75)
    assert not any(event["event"] == "freeze" for event in run.events())
    run.start("deepspeed")
    assert run.end() == 0, run.printed[-3000:]
    assert any(event["event"] == "resume" for event in run.events())
    assert_same_run(run, reference)
