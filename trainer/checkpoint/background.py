"""Saving while training goes on: a step waits for a copy to host memory, a thread does the rest.

::

    saves = BackgroundSaves(root, config, ask_to_stop)    # collective: makes the process group of the threads
    saves.save(manifest, engine, archive)                 # waits for the save before it, copies, returns
    for report in saves.reports(): …                      # what has ended since; never waits
    saves.wait()                                          # before the run ends

The ranks' threads agree through a process group that nothing else uses, so their collectives never mix with those of
training. A save that fails fails on all ranks, each of which hears of it in its own thread at its own time: it then
asks for a stop, if the recipe wants that, and the training loop agrees on the step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.host_memory import HostMemory
from trainer.checkpoint.manifest import Manifest, directory_name
from trainer.checkpoint.writer import SaveFailed, write_checkpoint
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive
from trainer.storages import Storages

LONGEST_WRITE = timedelta(hours=1)
"""A rank whose file is not written so long after another's is taken for lost, and the save for failed."""


@dataclass(frozen=True)
class SaveReport:
    """How a save ended. `seconds` from `save` until the checkpoint had its name, of which training stood still for
    `stall_seconds`; `bytes` over all ranks. `error` is None or one line for a person."""

    step: int
    path: Path
    bytes: int
    seconds: float
    stall_seconds: float
    error: str | None = None


class BackgroundSaves:
    """The checkpoints of a run, one at a time. Keeps as much host memory as this rank's state, see `HostMemory`."""

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        ask_to_stop: Callable[[str], None],
        storages: Storages | None = None,
    ):
        """`storages`: of `root`; None = all ranks see one."""
        self._root, self._config, self._ask_to_stop, self._storages = root, config, ask_to_stop, storages
        self._memory = HostMemory()
        self._group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WRITE)
        # The interpreter waits for this thread at exit: a save that is under way when training raises is completed.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._reports: deque[SaveReport] = deque()
        self._last: SaveReport | None = None
        self._ever_failed = False

    def save(
        self,
        manifest: Manifest,
        engine: FreezingEngine,
        archive: FrozenArchive,
        reference: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Save the state as it is now, on all ranks at the same step. `manifest` comes without its `files`.
        `reference`: this rank's part of what a freezing policy compares with."""
        started = time.perf_counter()
        self.wait()
        state = self._memory.copy_state(engine, archive, reference)
        stall = time.perf_counter() - started

        def write() -> None:
            error, path, size = None, self._root / directory_name(manifest.step), 0
            try:
                path, size = write_checkpoint(self._root, manifest, state, self._config, self._group, self._storages)
            except SaveFailed as failure:
                error = str(failure)
            self._last = SaveReport(manifest.step, path, size, time.perf_counter() - started, stall, error)
            self._reports.append(self._last)
            if error:
                self._ever_failed = True
                if self._config.on_error == "stop":
                    self._ask_to_stop("a checkpoint could not be saved")

        self._under_way = self._thread.submit(write)

    def wait(self) -> None:
        """Return when no save is under way. Raises what went wrong in the thread, other than a failed save."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def reports(self) -> list[SaveReport]:
        """The saves that have ended since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]

    @property
    def failed(self) -> bool:
        """Whether the run may not end as if all were well: the newest save failed, or an earlier one ended the run.

        The same on every rank after `wait`."""
        last_failed = self._last is not None and self._last.error is not None
        return last_failed or (self._ever_failed and self._config.on_error == "stop")
