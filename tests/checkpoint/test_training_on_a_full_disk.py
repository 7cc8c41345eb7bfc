"""A disk that fills up under a real training: nothing saved is lost, and the run does as `checkpoint.on_error` says."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import list_checkpoints, step_of, verify
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
RECIPE = """
model: {image_size: 64, patch_size: 16, embed_dim: 32, depth: 4, num_heads: 2, stages: [0, 1, 2, 3], decoder_dim: 32,
        decoder_heads: 2}
optimizer: {lr: 1e-3, warmup_epochs: 0.3}
data: {workers: 1, window: 4, lanes: 4}
train: {epochs: 3, global_batch: 8}
checkpoint: {every_steps: 4, keep_last: 50}
tracking: {log_every: 1, pictures: never, tensorboard: false}
"""
LAST_STEP = 54
ROOM = 4 * 2**20  # for a few checkpoints


def train(world_size: int, shards: Path, run: Path, *overrides: str) -> list[tuple[int, str]]:
    """Exit code and output of every rank."""
    recipe = run.parent.parent / "recipe.yaml"
    recipe.write_text(RECIPE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "launch/pretrain.py", "--ds_config", "ds_configs/zero2_cpu.json", "--recipe", recipe,
                 "--data", shards, "--output", run, *overrides],
                env=os.environ | {name: str(value) for name, value in place.items()}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=200)[0] for process in ranks]
    return [(process.returncode, output) for process, output in zip(ranks, outputs, strict=True)]


def leave_room(disk: Path) -> Path:
    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - ROOM))
    return filler


@pytest.mark.slow
def test_all_ranks_stop_and_the_run_goes_on_once_there_is_room(small_disk: Path, shards: Path) -> None:
    filler, run = leave_room(small_disk), small_disk / "run"
    ended = train(2, shards, run, "checkpoint.on_error=stop")
    assert [code for code, _ in ended] == [1, 1], ended[0][1][-3000:]
    printed = ended[0][1]
    assert re.search(r"error: .*step_\d+ not saved, earlier ones are intact: .*needs [\d,]+ bytes, [\d,]+ are", printed)
    assert "Traceback" not in printed + ended[1][1]
    newest, *_ = saved = list_checkpoints(run / "checkpoints")
    stopped_at = max(event["step"] for event in read_metrics(run) if event["event"] == "step")
    assert step_of(newest) < stopped_at < LAST_STEP
    assert [verify(directory).step for directory in saved] == list(range(step_of(newest), 0, -4))
    filler.unlink()
    again = train(2, shards, run, "checkpoint.on_error=stop", "checkpoint.keep_last=2")
    assert [code for code, _ in again] == [0, 0], again[0][1][-3000:]
    assert f"resuming from {newest}" in again[0][1]
    assert step_of(list_checkpoints(run / "checkpoints")[0]) == LAST_STEP


@pytest.mark.slow
def test_training_goes_on_to_its_end_without_room_and_does_not_call_that_done(small_disk: Path, shards: Path) -> None:
    leave_room(small_disk)
    ((code, printed),) = train(1, shards, small_disk / "run", "checkpoint.on_error=continue")
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
