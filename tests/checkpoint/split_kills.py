"""SIGKILL between what two machines with own disks do in a save: `python -m tests.checkpoint.split_kills FOLDER`.

Each round starts two ranks, forks of this process, that save steps 1, 2 and 3 and keep one checkpoint. One of them is
killed at a chosen place of the third save. Then two new ranks look for the newest checkpoint and gather it. Prints one
JSON object a round.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.checkpoint.own_disks import find_and_gather
from tests.checkpoint.tensors import Counting, manifest, require_counted
from trainer.checkpoint import writer
from trainer.checkpoint.background import BackgroundSaves
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import step_of
from trainer.storages import finding_storages

PLACES = ("_complete", "_give_name", "sync_directory", "_keep_house")
LAST_STEP = 3


def main(folder: Path) -> None:
    for place in PLACES:
        for victim in range(2):
            here = folder / f"{place}_{victim}"
            here.mkdir()
            ends = _on_two_ranks(here, lambda rank, root, p=place, v=victim: _save(root, rank == v, p))
            left = [sorted(path.name for path in _root(here, rank).iterdir()) for rank in range(2)]
            found = _on_two_ranks(here, lambda rank, root: _find(root))
            print(
                json.dumps({"place": place, "victim": victim, "ends": ends, "left": left, "found": found}), flush=True
            )


def _root(folder: Path, rank: int) -> Path:
    return folder / f"machine_{rank}" / "checkpoints"


def _on_two_ranks(folder: Path, action: Callable[[int, Path], int]) -> list[int]:
    """Exit codes by rank, or minus the signal."""
    rendezvous = folder / f"rendezvous_{len(list(folder.iterdir()))}"
    pids = [_fork(rank, folder, rendezvous, action) for rank in range(2)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _fork(rank: int, folder: Path, rendezvous: Path, action: Callable[[int, Path], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
            )
            code = action(rank, _root(folder, rank))
        finally:
            os._exit(code)
    return pid


def _save(root: Path, dies: bool, place: str) -> int:
    """7 if the last save failed on this rank."""
    real, state = getattr(writer, place), Counting(3001)

    def deadly(*arguments: Any) -> Any:
        if step == LAST_STEP and (place != "sync_directory" or arguments[0] == root):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    with finding_storages(root) as storages, mock.patch.object(writer, place, deadly if dies else real):
        saves = BackgroundSaves(root, CheckpointConfig(keep_last=1), lambda reason: None, storages)
        for step in range(1, LAST_STEP + 1):
            state.count(step)
            saves.save(manifest(step, state.shapes, world_size=2), state, state.archive)
            saves.wait()
        return 7 if saves.failed else 0


def _find(root: Path) -> int:
    """The step that a run would go on from; every element of it is looked at."""
    with finding_storages(root) as storages:
        path = find_and_gather(root, storages, lambda text: None)
        if path is None:
            return 0
        require_counted(path)
        return step_of(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
