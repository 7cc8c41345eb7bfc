"""What counts as a reason to stop, before the ranks agree on it."""

import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest

from trainer.stopping import SIGNALS, StopSignals, _is_alive, launchers_among


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopSignals()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_ends_nothing(signals: StopSignals) -> None:
    assert signals.received is None
    signal.raise_signal(signal.SIGUSR1)
    assert signals.received == "SIGUSR1"


def test_the_second_ctrl_c_does_not_wait_but_an_echo_of_the_first_does(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # torchrun hands on what the terminal has sent already
    later = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_launcher_that_died_and_was_not_collected_is_gone() -> None:
    launcher = subprocess.Popen(["true"])
    process = psutil.Process(launcher.pid)
    deadline = time.monotonic() + 30
    while process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.is_running()
    assert not _is_alive(process)
    launcher.wait()
    assert not _is_alive(process)


class Parent:
    def __init__(self, *words: str):
        self.words = list(words)

    def cmdline(self) -> list[str]:
        return self.words


LAUNCH = Parent("python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x")
COMMAND, TORCHRUN = Parent("python", "/venv/bin/deepspeed", "train.py"), Parent("python", "/venv/bin/torchrun")
SHELL, SSHD, NEWER_SSHD = Parent("bash", "-c", "cd /x"), Parent("sshd: me@notty"), Parent("sshd-session:", "me@notty")
LISTENER, TERMINAL = Parent("sshd: /usr/sbin/sshd -D [listener]"), Parent("sshd: me@pts/0")


@pytest.mark.parametrize(
    ("parents", "needed"),
    [
        ([LAUNCH, COMMAND, SHELL, TERMINAL], [LAUNCH, COMMAND]),
        ([LAUNCH, SHELL, SSHD, LISTENER], [LAUNCH, SSHD]),  # pdsh started it
        ([LAUNCH, SHELL, NEWER_SSHD, LISTENER], [LAUNCH, NEWER_SSHD]),
        ([LAUNCH, COMMAND, SHELL, SSHD], [LAUNCH, COMMAND]),  # ssh HOST deepspeed …, which may outlive the connection
        ([TORCHRUN, SHELL, SSHD], [TORCHRUN]),
    ],
)
def test_a_rank_needs_its_launchers_and_the_connection_by_which_pdsh_started_them(parents, needed) -> None:
    assert launchers_among(parents) == needed
