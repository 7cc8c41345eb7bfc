"""One run at a time in a run directory: RUN/lock names the run that works there, and shows that it is alive.

Where the machines of a run have RUN each on a disk of its own, each of the disks has a lock.

A run that was killed leaves its lock behind, on a machine that may be gone, and the one that continues it must not be
kept out. So a lock holds only as long as its owner is seen alive:

- by its process, where the newcomer is on the same machine;
- elsewhere by the time of the file's last change, which the owner renews every `BEAT_SECONDS`. The newcomer looks for
  `WATCH_SECONDS` whether it moves. No two clocks are compared, and each look opens the file anew, upon which NFS asks
  its server.

An owner that stood still for so long (suspended, or cut off from the storage) finds another name in its lock when it
moves again, and ends at once, without saving: the directory belongs to the other.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

from trainer.errors import BadInput, cannot_be_written
from trainer.tracking.rank_log import complain

BEAT_SECONDS = 5.0
WATCH_SECONDS = 20.0
SETTLE_SECONDS = 1.0
"""How long after taking over a lock to see whether another did so at the same moment; the last of them has it."""
EXIT_CODE = 1


@dataclass(frozen=True)
class Owner:
    """`machine`: equal where process numbers mean the same; `process_started`: tells two of one number apart."""

    host: str
    pid: int
    started: str
    process_started: float
    machine: str
    token: str

    def __str__(self) -> str:
        return f"the run on {self.host} (process {self.pid}, started {self.started})"


class RunLock:
    """Held from `__init__` to `release`, on each storage of a run by one rank for all that see it."""

    def __init__(self, output: Path, say: Callable[[str], None]):
        """`output` is there. `say` is told of a lock that is waited for or taken over.

        Raises `BadInput` where a living run holds the lock, or nothing can be written."""
        self._path = output / "lock"
        self._me = _this_process()
        try:
            self._acquire(output, say)
        except OSError as error:
            raise cannot_be_written(output, error) from None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        self._thread.join(BEAT_SECONDS)
        with contextlib.suppress(OSError):
            if _owner(self._path) == self._me:
                self._path.unlink()

    def _acquire(self, output: Path, say: Callable[[str], None]) -> None:
        while not self._create():
            owner = _owner(self._path)
            if owner and owner.machine == self._me.machine:
                alive = _is_alive(owner)
            else:
                say(f"{self._path} is there: looking for {WATCH_SECONDS:g} s whether {owner or 'its owner'} is alive")
                alive = self._moves()
            if not self._path.exists():
                continue  # it was released meanwhile
            if alive:
                raise BadInput(
                    f"--output {output}: {owner or 'another run'} works there; stop it or choose another --output"
                )
            if _owner(self._path) == owner and self._take_over():
                say(f"took over {self._path}: {owner or 'its owner'} is gone")
                return

    def _create(self) -> bool:
        """False where there is a lock already."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except FileNotFoundError:  # a run that was kept out has just removed the folder, which it had made
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._create()
        with os.fdopen(descriptor, "w") as file:
            self._write(file)
        return True

    def _take_over(self) -> bool:
        mine = self._path.with_name(f".lock.{self._me.token}")
        with mine.open("w") as file:
            self._write(file)
        mine.replace(self._path)
        time.sleep(SETTLE_SECONDS)
        return _owner(self._path) == self._me

    def _write(self, file: TextIO) -> None:
        file.write(json.dumps(asdict(self._me)) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def _moves(self) -> bool:
        """Whether the lock's file changes, or goes, while it is watched."""
        before, deadline = _last_change(self._path), time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, WATCH_SECONDS / 4))
            if _last_change(self._path) != before:
                return True
        return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # storage that does not answer now may do so later
                if (owner := _owner(self._path)) and owner != self._me:
                    complain(f"error: {owner} has taken over {self._path.parent}, since this one had stood still: it "
                             "ends without saving")  # fmt: skip
                    os._exit(EXIT_CODE)
                os.utime(self._path)


def _this_process() -> Owner:
    now, process = time.strftime("%Y-%m-%d %H:%M:%S"), psutil.Process()
    return Owner(socket.gethostname(), process.pid, now, process.create_time(), _machine(), uuid.uuid4().hex)


def _machine() -> str:
    """This boot of this machine and, in a container, this list of processes."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _is_alive(owner: Owner) -> bool:
    try:  # a clock that is put right moves all starts by the same fraction of a second
        return abs(psutil.Process(owner.pid).create_time() - owner.process_started) < 5
    except psutil.NoSuchProcess:
        return False


def _owner(path: Path) -> Owner | None:
    """None where it cannot be told: no lock, or one that is being written."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _last_change(path: Path) -> tuple[int, int] | None:
    """Of which file, and when; None where there is none. Opened, because NFS answers a mere stat from its cache."""
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns
    except FileNotFoundError:
        return None
