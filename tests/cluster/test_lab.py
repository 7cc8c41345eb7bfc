"""The lab itself: its hosts are apart from each other and from this machine, and nothing is left of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.lab import Lab
from tests.distributed import REPOSITORY

pytestmark = pytest.mark.cluster


def _interfaces() -> set[str]:
    return set(psutil.net_if_addrs())


def test_hosts_reach_each_other_by_name_and_nothing_else(lab: Lab) -> None:
    first, second = lab.hosts
    assert first.run("hostname").stdout == "node-1\n"
    assert first.run("ssh", "node-2", "hostname", "-I").stdout.split() == [second.address]
    assert first.run("ip", "route", "get", "192.0.2.1").returncode != 0  # no way out
    first.run("touch", str(lab.local_disk / "mine"))
    assert second.run("ls", str(lab.local_disk)).stdout == ""


def test_a_pattern_kills_on_its_own_host_only(lab: Lab) -> None:
    first, second = lab.hosts
    marker = f"sleep 7{os.getpid()}"
    outside = subprocess.Popen(marker.split())
    for host in lab.hosts:
        host.start(marker.split())
    deadline = time.monotonic() + 20
    while not all(any(p.cmdline() == marker.split() for p in host.processes()) for host in lab.hosts):
        assert time.monotonic() < deadline
    first.run("pkill", "-f", marker)
    assert not list(first.processes())
    assert list(second.processes())
    assert outside.poll() is None
    outside.kill()
    outside.wait()


def test_a_cut_cable_is_silence_until_it_is_mended(lab: Lab) -> None:
    first, second = lab.hosts
    second.cut()
    assert "timed out" in first.run("ssh", "-o", "ConnectTimeout=1", "node-2", "true").stderr
    second.mend()
    assert first.run("ssh", "node-2", "true").returncode == 0


def test_a_lab_that_is_killed_leaves_no_process_and_no_interface(lab_is_possible: None, tmp_path: Path) -> None:
    before = _interfaces()
    program = (
        "import sys, time; from pathlib import Path; from tests.cluster.lab import Lab; "
        "lab = Lab(2, Path(sys.argv[1])).__enter__(); lab.hosts[1].start(['sleep', '600']); "
        "print(*[host.init for host in lab.hosts], flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "lab")], cwd=REPOSITORY,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    assert [psutil.pid_exists(int(pid)) for pid in process.stdout.readline().split()] == [True, True]
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert _interfaces() == before
