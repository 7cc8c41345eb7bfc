"""A hang ends in a report of where every rank stands, and a dead rank in a line that says which, instead of silence.

A rank that stops (a dead disk, a driver that does not return, a stopped process) makes all others wait in their next
collective for ever. So the training loop marks its place (`Watchdog.at`, one assignment), and a thread on each rank
publishes it once a second in a small key-value store, which rank 0 serves independently of the process groups. A rank
that has not moved for `timeout` seconds raises the alarm there. Every rank then prints who stands where and its own
Python stack, and ends with exit code 1, upon which the launcher ends the rest.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from trainer.ranks import from_rank_zero, rank_ranges
from trainer.tracking.rank_log import complain

T = TypeVar("T")

BEAT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
"""How long the store may take to answer before rank 0, which serves it, counts as gone."""
PAUSE_SECONDS = 5.0
"""How much later than planned a look of the watchdog may come before its whole process counts as having stood still."""
ALARM = "alarm"
EXIT_CODE = 1
NO_HANG = timedelta(days=365)


def collective_timeout(hang_timeout: float) -> timedelta:
    """For every process group: torch's own abort names neither rank nor step, so it may only come after ours. Without
    a limit of ours there is none of torch's."""
    return timedelta(seconds=max(3600.0, 2 * hang_timeout)) if hang_timeout else NO_HANG


def keep_flight_recorder() -> None:
    """Have NCCL remember its last collectives, for the file that a report leaves. Call before the process group starts;
    what the user has set stays."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


@dataclass(frozen=True)
class Mark:
    """Where a rank stands: `number` counts marks from the start, so that equal numbers mean the same place."""

    number: int
    step: int
    place: str
    seconds: float  # spent there when it was published
    beat: int = 0  # how often this rank has published; a number that does not grow is a process that does not run


class Watchdog:
    """One per rank, made and closed by all together. `timeout` in seconds; 0 = marks are published, no alarm is raised.

    `directory` takes NCCL's flight recorder when there is an alarm."""

    def __init__(self, timeout: float, directory: Path):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._timeout = timeout or float("inf")
        self._directory = directory
        self._main_thread = threading.get_ident()
        self._place: tuple[int, int, str, float] = (0, 0, "start", time.monotonic())
        self._beat = 0
        self._closed = threading.Event()
        self._store = self._open_store()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, place: str, step: int) -> None:
        """The main thread enters a place of the loop, in the step of that number (1 = the first)."""
        self._place = (self._place[0] + 1, step, place, time.monotonic())

    def lost_ranks(self) -> str | None:
        """After an error in a collective, which ranks have stopped publishing: a line for a person, None if none has.

        Takes a few seconds."""
        if self.world_size == 1:
            return None
        first = self._read()
        time.sleep(2.5 * BEAT_SECONDS)
        second = self._read()
        if first is None or second is None:
            return "rank 0 is gone, or its machine: look for what it said last"
        gone = [rank for rank, mark in second.items() if rank != self.rank and mark.beat == first[rank].beat]
        lines = [f"rank {rank} is gone, last seen {_where(second[rank])}: look for what it said last" for rank in gone]
        return "; ".join(lines) or None

    def close(self) -> None:
        """The main thread is about to leave; it may take as long as it likes."""
        self._closed.set()
        self._thread.join(ANSWER_SECONDS)

    def _open_store(self) -> TCPStore:
        def connect(port: int, serve: bool) -> TCPStore:
            timeout = timedelta(seconds=60)
            return TCPStore(os.environ["MASTER_ADDR"], port, is_master=serve, wait_for_workers=False, timeout=timeout)

        mine: list[TCPStore] = []

        def serve() -> int:
            mine.append(connect(0, serve=True))
            return mine[0].port

        port = from_rank_zero(serve)
        store = mine[0] if mine else connect(port, serve=False)
        store.set(str(self.rank), self._encoded())
        dist.barrier()  # from here on every rank has an entry
        return store

    def _watch(self) -> None:
        question: _Question[bool] | None = None
        awake_since = last_look = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            if question is None or not question.is_alive():  # one at a time, however long rank 0 takes
                question = _Question(self._publish)
            alarm = question.answer_within(ANSWER_SECONDS)
            now = time.monotonic()
            if now - last_look > BEAT_SECONDS + ANSWER_SECONDS + PAUSE_SECONDS:
                awake_since = now  # it was this process that stood still: suspended by a scheduler, say
            last_look = now
            stuck = now - max(awake_since, self._place[3]) > self._timeout
            if (alarm or stuck) and not self._closed.is_set():
                self._end()

    def _publish(self) -> bool:
        """Whether another rank has raised the alarm."""
        self._beat += 1
        self._store.set(str(self.rank), self._encoded())
        return self._store.check([ALARM])

    def _report(self) -> str:
        """Raise the alarm, wait until the others have heard it and published once more, and put it all together."""
        _within(ANSWER_SECONDS, lambda: self._store.set(ALARM, str(self.rank)))
        before = self._read()
        time.sleep(2.5 * BEAT_SECONDS)
        _within(ANSWER_SECONDS, self._publish)
        after = self._read()
        time.sleep(2.5 * BEAT_SECONDS)  # rank 0 serves the store until all have read it
        frame = sys._current_frames().get(self._main_thread)
        stack = "".join(traceback.format_stack(frame)) if frame else "gone\n"
        return (
            f"hang: no progress for {self._timeout:g} s (train.hang_timeout); this is rank {self.rank}, "
            f"{_where(self._mark())}\n{describe(before, after)}\nrank {self.rank} stands at:\n{stack}"
        )

    def _end(self) -> None:
        try:
            report = self._report()
            _within(ANSWER_SECONDS, lambda: complain(report))  # the pipe to a terminal that is cut off may be full
            if dist.get_backend() == "nccl":
                self._dump_flight_recorder()
        finally:
            os._exit(EXIT_CODE)  # the main thread hangs: it cannot be asked to leave

    def _dump_flight_recorder(self) -> None:
        """For `torchfrtrace DIRECTORY`. torch writes it by itself only when its own, later, timeout has passed."""
        self._directory.mkdir(parents=True, exist_ok=True)
        trace = torch._C._distributed_c10d._dump_nccl_trace()  # type: ignore[attr-defined]
        (self._directory / f"rank_{self.rank}").write_bytes(trace)

    def _encoded(self) -> str:
        return json.dumps(asdict(self._mark()))

    def _mark(self) -> Mark:
        number, step, place, since = self._place
        return Mark(number, step, place, time.monotonic() - since, self._beat)

    def _read(self) -> dict[int, Mark] | None:
        """Every rank's last mark; None if the store does not answer."""
        keys = [str(rank) for rank in range(self.world_size)]
        found = _within(ANSWER_SECONDS, lambda: self._store.multi_get(keys))
        return None if found is None else {rank: Mark(**json.loads(value)) for rank, value in enumerate(found)}


def describe(before: dict[int, Mark] | None, after: dict[int, Mark] | None) -> str:
    """Where all ranks stand, those at one place in one line, the ones behind first. Two readings of the store, a few
    seconds apart, None where it did not answer."""
    if before is None or after is None:
        return "rank 0 does not answer: its process is stopped or gone, or its machine cannot be reached"
    last = min(mark.number for mark in after.values())
    ahead = any(mark.number != last for mark in after.values())
    together: dict[tuple[int, bool], list[int]] = {}
    for rank, mark in after.items():
        together.setdefault((mark.number, mark.beat == before[rank].beat), []).append(rank)
    lines = []
    for (number, silent), ranks in sorted(together.items()):
        text = f"  rank {rank_ranges(ranks)}: {'last seen ' if silent else ''}{_where(after[ranks[0]])}"
        text += ", its process is stopped or gone" if silent else ""
        lines.append(text + (" <- behind" if ahead and number == last else ""))
    return "\n".join(lines)


def _where(mark: Mark) -> str:
    return f"in step {mark.step}, {mark.place}, for {mark.seconds:.0f} s"


class _Question(threading.Thread, Generic[T]):
    """A call to the store in a thread of its own: one to a stopped process never returns, whatever its timeout."""

    def __init__(self, ask: Callable[[], T]):
        super().__init__(daemon=True)
        self._ask = ask
        self._answer: T | None = None
        self.start()

    def run(self) -> None:
        with contextlib.suppress(RuntimeError):  # torch.distributed's errors, a broken connection among them
            self._answer = self._ask()

    def answer_within(self, seconds: float) -> T | None:
        """None where there is no answer in time, or an error."""
        self.join(seconds)
        return self._answer


def _within(seconds: float, ask: Callable[[], T]) -> T | None:
    return _Question(ask).answer_within(seconds)
