"""SIGKILL at random moments of endless saving: `python -m tests.checkpoint.kills FOLDER ROUNDS SEED`.

Each round starts two ranks that do nothing but count and save, kills one or both of them after a random time, and
looks at what is on disk. The ranks are forks of this process, which has the imports behind it. Prints one JSON object
a round.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.checkpoint.tensors import Counting, found_for, manifest, require_counted
from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import step_of

NUMEL = 1_000_000  # 12 MB a checkpoint: a save takes some tens of milliseconds


def main(folder: Path, rounds: int, seed: int) -> None:
    root, rng = folder / "checkpoints", random.Random(seed)
    for number in range(rounds):
        before = _newest(root)
        pids = [_fork(rank, root, folder / f"rendezvous_{number}", before) for rank in range(2)]
        _wait_until(lambda old=before: _newest(root) > old)  # the ranks are past their start
        time.sleep(rng.uniform(0, 0.15))
        victims = pids if number % 2 else [rng.choice(pids)]
        completed = _newest(root)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        ends = dict(_end_of(pid) for pid in pids)  # a rank left alone must end by itself
        damaged: list[str] = []
        newest = found_for(root, "auto", damaged.append)
        assert newest is not None
        require_counted(newest)
        print(
            json.dumps(
                {
                    "completed_before_the_kill": completed,
                    "found": step_of(newest),
                    "damaged": damaged,
                    "half_written": [path.name for path in root.glob(".step_*")],
                    "survivors": [status for pid, status in ends.items() if pid not in victims],
                }
            ),
            flush=True,
        )


def _newest(root: Path) -> int:
    names = [path.name for path in root.glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def _fork(rank: int, root: Path, rendezvous: Path, step: int) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(_save_for_ever(rank, root, rendezvous, step))
    return pid


def _save_for_ever(rank: int, root: Path, rendezvous: Path, step: int) -> int:
    """A rank that counts and saves, from `step` on, until a save fails. Its exit code is 7 then."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    state, saves = Counting(NUMEL), BackgroundSaves(root, CheckpointConfig(), lambda reason: None)
    while not saves.failed:
        step += 1
        state.count(step)
        saves.save(manifest(step, state.shapes, world_size=2), state, state.archive)
        state.count(-1)
        time.sleep(0.01)
    return 7


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the ranks save nothing"
        time.sleep(0.002)


def _end_of(pid: int) -> tuple[int, int]:
    """(pid, exit code or minus the signal), waiting for it."""
    deadline = time.monotonic() + 60
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return pid, os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
