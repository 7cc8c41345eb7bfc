"""A disk that fills up under a real training: nothing saved is lost, and the run does as `checkpoint.on_error` says."""

import os
import re
from pathlib import Path

import pytest

from tests.checkpoint.by_hand import LAST_STEP, train
from trainer.checkpoint.manifest import list_checkpoints, step_of, verify
from trainer.tracking.metrics import read_metrics

ROOM = 4 * 2**20  # for a few checkpoints


def leave_room(disk: Path) -> Path:
    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - ROOM))
    return filler


@pytest.mark.slow
def test_all_ranks_stop_and_the_run_goes_on_once_there_is_room(small_disk: Path, shards: Path) -> None:
    filler, run = leave_room(small_disk), small_disk / "run"
    ended = train([run] * 2, shards, "checkpoint.on_error=stop")
    assert [code for code, _ in ended] == [1, 1], ended[0][1][-3000:]
    printed = ended[0][1]
    assert re.search(r"error: .*step_\d+ not saved, earlier ones are intact: .*needs [\d,]+ bytes, [\d,]+ are", printed)
    assert "Traceback" not in printed + ended[1][1]
    newest, *_ = saved = list_checkpoints(run / "checkpoints")
    stopped_at = max(event["step"] for event in read_metrics(run) if event["event"] == "step")
    assert step_of(newest) < stopped_at < LAST_STEP
    assert [verify(directory).step for directory in saved] == list(range(step_of(newest), 0, -4))
    filler.unlink()
    again = train([run] * 2, shards, "checkpoint.on_error=stop", "checkpoint.keep_last=2")
    assert [code for code, _ in again] == [0, 0], again[0][1][-3000:]
    assert f"resuming from {newest}" in again[0][1]
    assert step_of(list_checkpoints(run / "checkpoints")[0]) == LAST_STEP


@pytest.mark.slow
def test_training_goes_on_to_its_end_without_room_and_does_not_call_that_done(small_disk: Path, shards: Path) -> None:
    leave_room(small_disk)
    ((code, printed),) = train([small_disk / "run"], shards, "checkpoint.on_error=continue")
    assert code == 1, printed[-3000:]
    assert printed.count("not saved, earlier ones are intact") > 1
    assert "the next save tries again" in printed
    events = read_metrics(small_disk / "run")
    assert max(event["step"] for event in events if event["event"] == "step") == LAST_STEP
    told = [event for event in events if event["event"] == "checkpoint"]  # of what is on disk, and of nothing else
    assert all(set(e) == {"event", "step", "path", "seconds", "bytes", "stall_seconds"} for e in told)
    saved = list_checkpoints(small_disk / "run" / "checkpoints")
    assert saved
    assert [event["path"] for event in reversed(told)] == [f"checkpoints/{directory.name}" for directory in saved]
    assert all(verify(directory) for directory in saved)
