"""Real ranks for tests: processes with a gloo process group and DeepSpeed imported once, that run many cases.

::

    def case(stage: int) -> float: ...              # module level; runs on every rank

    with RankPool(world_size=2) as ranks:           # processes start at the first run
        losses = ranks.run(case, 2, timeout=60)     # one result per rank

    run_on_ranks(case, 2, 3)                        # the same for one case: start, run, stop

A case that raises, dies or hangs fails the test with that rank's traceback or output; all ranks are then killed, and
the next run starts fresh ones. Nothing outlives the pool, not even a compiler that a rank has started.
"""

import contextlib
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parent.parent
START_SECONDS = 120
GRACE_SECONDS = 5
"""How long the other ranks get to report once one has failed; most then wait in a collective for ever."""


class RankFailure(AssertionError):
    """A rank raised, died or did not finish in time."""


class RankPool:
    """`world_size` processes on this machine, started at the first `run` and again after a failure."""

    def __init__(self, world_size: int):
        self.world_size = world_size
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []
        self._directory: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Call a module-level `function(*args)` on every rank at once; results by rank.

        Raises `RankFailure` with the first failing rank's traceback, or after `timeout` seconds."""
        if not self._processes:
            self._start()
        call = pickle.dumps((function, args))
        for connection in self._connections:
            connection.send_bytes(call)
        try:
            return self._collect(time.monotonic() + timeout, f"{function.__name__} did not finish in {timeout} s")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the ranks and whatever they started."""
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.wait()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []
        if self._directory is not None:
            self._directory.cleanup()

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="ranks_")
        directory = Path(self._directory.name)
        environment = os.environ | {
            "WORLD_SIZE": str(self.world_size),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        for rank in range(self.world_size):
            ours, theirs = Pipe()
            with (directory / f"output_{rank}").open("wb") as output, theirs:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.distributed", str(theirs.fileno()), str(directory)],
                        env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        cwd=REPOSITORY,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=[theirs.fileno()],
                    )
                )
            self._connections.append(ours)
        try:
            self._collect(time.monotonic() + START_SECONDS, f"the ranks did not start in {START_SECONDS} s")
        except BaseException:
            self.stop()
            raise

    def _collect(self, deadline: float, late: str) -> list[Any]:
        """One reply per rank. Raises `RankFailure` for the first rank that failed, or with `late`."""
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        while len(results) + len(failures) < self.world_size:
            open_ranks = [r for r in range(self.world_size) if r not in results and r not in failures]
            ready = wait([self._connections[rank] for rank in open_ranks], timeout=max(0, deadline - time.monotonic()))
            if not ready:
                break
            for rank in open_ranks:
                if self._connections[rank] in ready:
                    try:
                        succeeded, value = self._connections[rank].recv()
                    except EOFError:
                        succeeded, value = False, f"died; its output ends with\n{self._output(rank)}"
                    (results if succeeded else failures)[rank] = value
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if failures:
            rank, text = next(iter(failures.items()))
            raise RankFailure(f"rank {rank} of {self.world_size}: {text}")
        if len(results) < self.world_size:
            silent = [rank for rank in range(self.world_size) if rank not in results]
            raise RankFailure(f"{late}; waiting for rank {silent}, whose output ends with\n{self._output(silent[0])}")
        return [results[rank] for rank in range(self.world_size)]

    def _output(self, rank: int) -> str:
        assert self._directory is not None
        return (Path(self._directory.name) / f"output_{rank}").read_text(errors="replace")[-4000:]


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """`RankPool.run` for a single call: start `world_size` ranks, run, stop. Results by rank."""
    with RankPool(world_size) as ranks:
        return ranks.run(function, *args, timeout=timeout)


def _serve(connection: Connection, directory: Path) -> None:
    """A rank: join the process group, then answer calls until the pool goes away."""
    _answer(connection, lambda: _join(directory))
    with contextlib.suppress(EOFError):
        while True:
            call = connection.recv_bytes()
            _answer(connection, partial(_call, call))


def _join(directory: Path) -> None:
    import torch
    from deepspeed.utils import logger

    from trainer.engine.process_group import join_process_group

    torch.set_num_threads(1)
    logger.setLevel("ERROR")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # asked for, not used: the ranks meet in a file
    join_process_group(timeout=timedelta(seconds=300), init_method=f"file://{directory}/rendezvous")


def _call(call: bytes) -> Any:
    function, args = pickle.loads(call)
    try:
        return function(*args)
    finally:
        gc.collect()
        gc.freeze()  # the next case's collections need not walk through torch and DeepSpeed themselves


def _answer(connection: Connection, action: Callable[[], Any]) -> None:
    try:
        reply = (True, action())
    except Exception:
        reply = (False, traceback.format_exc())
    connection.send(reply)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), Path(sys.argv[2]))
