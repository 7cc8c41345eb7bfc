"""A whole run whose micro-batch grows at its freezes, through the command."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.running import Run
from trainer.checkpoint.manifest import list_checkpoints, step_of

REBATCH = ("train.micro_batch=1", "freezing.rebatch=true")


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", shards) as run:
        yield run


@pytest.mark.exhaustive
def test_the_micro_batch_grows_and_every_freeze_says_to_what(run: Run) -> None:
    run.start("python", *REBATCH)
    assert run.end() == 0, run.printed[-3000:]
    freezes = [event for event in run.events() if event["event"] == "freeze"]
    sizes = [event["micro_batch"] for event in freezes]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1
    for event in freezes:
        line = next(line for line in run.printed.splitlines() if f"step {event['step']}: froze " in line)
        assert line.endswith(f"micro-batch {event['micro_batch']} x {8 // event['micro_batch']}")
    assert f"re-batching: micro-batch 1 x 8, {min(s for s in sizes if s > 1)} x" in run.printed
    assert sorted(run.losses()) == list(range(1, 55))


@pytest.mark.slow
def test_a_rebatched_run_stopped_and_resumed_on_fewer_ranks_has_the_losses_of_a_run_without(
    run: Run, tmp_path: Path, shards: Path
) -> None:
    with Run(tmp_path / "plain", shards) as plain:
        plain.start("torchrun")
        assert plain.end() == 0, plain.printed[-3000:]
    run.start("torchrun", *REBATCH, "freezing.memory_budget=24MB")
    run.wait_for_step(37)
    run.launcher.send_signal(signal.SIGTERM)
    run.end()
    assert 37 <= step_of(list_checkpoints(run.directory / "checkpoints")[0]) < 54
    run.start("python", *REBATCH, "freezing.memory_budget=25MB")
    assert run.end() == 0, run.printed[-3000:]
    sizes = [event["micro_batch"] for event in run.events() if event["event"] == "freeze"]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 1
    # The same images and masks at every step, summed in another order; as in test_pretrain, Adam amplifies that.
    ours, theirs = run.losses(), plain.losses()
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert ours[step] == [value if value is None else pytest.approx(value, rel=2e-4) for value in values]
