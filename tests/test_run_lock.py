"""Who may work in a run directory, and when a lock that somebody left behind no longer counts."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import run_lock
from trainer.errors import BadInput
from trainer.run_lock import RunLock

ELSEWHERE = {"host": "node-7", "pid": 1, "started": "then", "process_started": 0.0, "machine": "another", "token": "t"}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_SECONDS", 0.2), ("WATCH_SECONDS", 1.0), ("SETTLE_SECONDS", 0.1)):
        monkeypatch.setattr(run_lock, name, seconds)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock of RUN."""
    (tmp_path / "run").mkdir()
    process = _hold(tmp_path / "run")
    yield process
    process.kill()
    process.wait()


def _hold(output: Path) -> subprocess.Popen:
    program = (
        "import sys, time; from pathlib import Path; from trainer import run_lock; run_lock.BEAT_SECONDS = 0.2; "
        "run_lock.RunLock(Path(sys.argv[1]), print); print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(output)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_works_there(tmp_path: Path, said: list[str], holder: subprocess.Popen) -> None:
    with pytest.raises(BadInput, match=rf"the run on {socket.gethostname()} \(process {holder.pid}, started 2"):
        RunLock(tmp_path / "run", said.append)
    assert not said  # on this machine nobody need wait to find out


def test_the_lock_of_a_killed_process_is_taken_over_at_once(
    tmp_path: Path, said: list[str], holder: subprocess.Popen
) -> None:
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path / "run", said.append)
    (line,) = said
    assert line.startswith(f"took over {tmp_path}/run/lock: the run on {socket.gethostname()} (process {holder.pid},")
    lock.release()
    assert not (tmp_path / "run" / "lock").exists()


def test_a_lock_of_a_machine_that_is_gone_is_taken_over_after_a_while(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "lock").write_text(json.dumps(ELSEWHERE))
    lock = RunLock(tmp_path, said.append)
    assert "whether the run on node-7 (process 1, started then) is alive" in said[0]
    assert said[1].endswith("the run on node-7 (process 1, started then) is gone")
    lock.release()


def test_a_lock_that_moves_is_a_living_run_on_another_machine(
    tmp_path: Path, said: list[str], holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "_machine", lambda: "not where the holder runs")
    with pytest.raises(BadInput, match=f"process {holder.pid}"):
        RunLock(tmp_path / "run", said.append)


def test_an_empty_lock_of_a_process_that_died_while_writing_it_keeps_nobody_out(
    tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "lock").touch()
    RunLock(tmp_path, said.append).release()
    assert said[-1].endswith("its owner is gone")


def test_a_run_that_stood_still_ends_when_it_finds_another_in_its_place(
    tmp_path: Path, said: list[str], holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "_machine", lambda: "not where the holder runs")
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    lock = RunLock(tmp_path / "run", said.append)
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(30) == run_lock.EXIT_CODE
    assert holder.stderr is not None
    assert f"(process {os.getpid()}, started" in holder.stderr.read()
    assert _content(tmp_path)["pid"] == os.getpid()
    lock.release()


def test_of_many_that_start_at_once_one_gets_in(tmp_path: Path) -> None:
    for stale in (False, True):
        output = tmp_path / f"stale_{stale}"
        output.mkdir()
        if stale:
            (output / "lock").write_text(json.dumps(ELSEWHERE))
        context = multiprocessing.get_context("fork")
        barrier, results = context.Barrier(6), context.Queue()
        starters = [context.Process(target=_try, args=(output, barrier, results)) for _ in range(6)]
        for process in starters:
            process.start()
        outcomes = [results.get(timeout=60) for _ in starters]
        assert sorted(outcomes) == ["in"] + ["refused"] * 5
        for process in starters:
            process.terminate()
            process.join()


def _try(output: Path, barrier, results) -> None:
    barrier.wait()
    try:
        RunLock(output, lambda _: None)
    except BadInput:
        results.put("refused")
    else:
        results.put("in")
    time.sleep(600)


def _content(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / "lock").read_text())
