"""Losses that are not finite, through the command: skipped, counted and told; too many in a row end the run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.running import Run
from trainer.checkpoint.manifest import list_checkpoints, verify
from trainer.checkpoint.reader import Checkpoint


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", shards) as run:
        yield run


@pytest.mark.slow
def test_bad_steps_are_counted_and_training_goes_on_until_there_are_too_many_in_a_row(run: Run) -> None:
    run.start("python", "train.max_bad_steps=3", "checkpoint.every_steps=4", fault="nan:4-5")
    run.wait_for_step(8)
    run.kill()
    counted = {e["step"]: (e["bad_steps"], e["loss"]) for e in run.events() if e["event"] == "step"}
    assert [counted[step][0] for step in (3, 4, 5, 6, 7)] == [0, 1, 2, 2, 2]
    assert [counted[step][1] is None for step in (3, 4, 5, 6, 7)] == [False, True, True, False, False]
    assert "step 5: loss or gradient not finite, update skipped on all ranks (2 in a row" in run.printed
    saved = [event["step"] for event in run.events() if event["event"] == "checkpoint"]
    assert saved[0] == 6, "a save that falls due after a bad step waits for a good one"

    # resumed, the count goes on where it was, and three more in a row are too many
    run.start("python", "train.max_bad_steps=3", "checkpoint.every_steps=4", fault="nan:11-99")
    assert run.end() == 1, run.printed[-3000:]
    assert "3 steps in a row, the last of them step 13, had a loss or a gradient that is not finite" in run.printed
    assert [e["bad_steps"] for e in run.events() if e["event"] == "step"][-1] == 4  # step 12's line
    check_report(run, world_size=1, steps=[11, 12, 13])


@pytest.mark.exhaustive
def test_too_many_bad_steps_on_one_rank_end_the_run_on_all(run: Run) -> None:
    run.start("deepspeed", "train.max_bad_steps=2", fault="nan:7-99")
    assert run.end() == 1, run.printed[-3000:]
    assert run.printed.count("2 steps in a row") == 1
    assert "(losses on rank 1; rank 1: by stage ['nan', 'nan', 'nan', 'nan'] for samples " in run.printed
    check_report(run, world_size=2, steps=[7, 8])
    assert list_checkpoints(run.directory / "checkpoints")[0].name == "step_00000005"


def check_report(run: Run, world_size: int, steps: list[int]) -> None:
    """Keys and losses of all ranks for each bad step, strict JSON, and a whole state that --resume auto never takes."""
    (path,) = (run.directory / "inspection").glob("*.json")
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [bad["step"] for bad in report["bad_steps"]] == steps
    for bad in report["bad_steps"]:
        assert [m["rank"] for m in bad["micro_batches"]] == list(range(world_size))
        for micro_batch in bad["micro_batches"]:
            assert len(micro_batch["keys"]) == 8 // world_size
            guilty = micro_batch["rank"] == world_size - 1
            assert all((loss == "nan") == guilty for loss in micro_batch["loss_stages"])
    assert report["last_good_gradient_norm"] > 0
    manifest = verify(path.with_suffix(""))
    assert manifest.step == steps[-1]
    assert manifest.engine["bad_steps_in_a_row"] == len(steps)
    newest = Checkpoint(list_checkpoints(run.directory / "checkpoints")[0])
    assert newest.manifest.step < steps[0]
