"""When a run ends early: a signal on any rank, a launcher that is gone, time that is up. All ranks agree on the step.

A scheduler's SIGTERM reaches one rank sooner than another, or only the launcher: `deepspeed` dies of it at once and
leaves its ranks behind. So each rank watches for signals, for its launchers and for the clock, and once per step the
ranks compare notes through a small collective on the host, started at one step and read at the next. The device is
never waited for.
"""

import os
import re
import signal
import time
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}
REMOTE_COMMAND = "sshd: @notty"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
IMPATIENT_SECONDS = 1.0
"""One Ctrl-C reaches a rank twice, from the terminal and from torchrun. A second one comes later than that."""


class StopSignals:
    """Takes note of signals from now on. Make it in the main thread, before anything that takes long."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupted = float("inf")  # when the first SIGINT came
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        """Only takes note: anything more, printing included, may not be done inside a signal handler."""
        if number == signal.SIGINT:
            if time.monotonic() - self._interrupted > IMPATIENT_SECONDS:
                raise KeyboardInterrupt  # a second Ctrl-C: the user does not want to wait
            self._interrupted = min(self._interrupted, time.monotonic())
        self.received = signal.Signals(number).name


class StopRequests:
    def __init__(self, signals: StopSignals, *, stop_after: float | None, timeout: timedelta) -> None:
        """`stop_after`: seconds from the start of this process to a stop; None = no limit. `timeout` of the collective:
        how far one rank may fall behind another. Collective."""
        self.reason: str | None = None  # this rank's own
        self._signals = signals
        process = psutil.Process(os.getpid())
        self._launchers = launchers_among(process.parents())
        age = time.time() - process.create_time()
        self._deadline = float("inf") if stop_after is None else time.monotonic() - age + stop_after
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._under_way: dist.Work | None = None

    def agreed(self) -> bool:
        """Whether the run is to stop now: the same answer on every rank. Call once per step, on every rank."""
        if self.wait():
            return True
        self._flag.fill_(self._wanted())
        self._under_way = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False

    def wait(self) -> bool:
        """Read the collective that is under way, if any: whether a rank asked to stop when it was started."""
        if self._under_way is None:
            return False
        self._under_way.wait()
        self._under_way = None
        return bool(self._flag.item())

    def _wanted(self) -> int:
        self.reason = self.reason or self._signals.received
        if self.reason is None and time.monotonic() > self._deadline:
            self.reason = "train.stop_after"
        if self.reason is None and not all(map(_is_alive, self._launchers)):
            self.reason = "the launcher is gone"
        return int(self.reason is not None)


def _is_alive(process: psutil.Process) -> bool:
    """A dead process that nobody has collected, as in a container without an init process, is still listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def launchers_among(parents: list[psutil.Process]) -> list[psutil.Process]:
    """Those of a rank's parents, the nearest first, without which it is not to go on.

    `deepspeed` on several machines starts its `deepspeed.launcher.launch` on each through ssh, without a terminal, and
    tells it nothing when it dies: then the end of that connection says so."""
    names = [_launcher_name(parent) for parent in parents]
    found = [parent for parent, name in zip(parents, names, strict=True) if name in LAUNCHERS]
    if "deepspeed.launcher.launch" in names and "deepspeed" not in names:
        found += [parent for parent, name in zip(parents, names, strict=True) if name == REMOTE_COMMAND]
    return found


def _launcher_name(process: psutil.Process) -> str | None:
    """Exact names only: a shell script that starts a launcher in the background may end when it likes."""
    try:
        words = process.cmdline()[:4]
    except psutil.Error:
        return None
    if re.match(r"sshd(-session)?: \S+@notty", " ".join(words)):
        return REMOTE_COMMAND
    return next((name for name in map(os.path.basename, words) if name in LAUNCHERS), None)
