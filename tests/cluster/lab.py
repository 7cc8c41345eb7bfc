"""Machines made of namespaces: hosts with addresses, names, processes and disks of their own, joined by a switch.

::

    with Lab(2, directory) as lab:
        lab.hosts[0].start(["ssh", "node-2", "hostname"], stdout=…)
        lab.hosts[1].cut()          # its cable; mend() plugs it in again
        lab.hosts[1].power_off()

Every host runs an sshd with keys that are made for this lab, and reads its own /etc/hosts, ssh configuration, /run,
/dev/shm and `Lab.local_disk`; all else is this machine's file system, as a cluster's shared storage would be. Nothing
has a name outside the lab: no interface, no `ip netns` entry. The kernel removes a namespace with its last process, and
each host's first process dies with the lab's (PR_SET_PDEATHSIG), upon which all others on the host do. So however the
lab ends, kill -9 included, nothing is left but the files in `directory`.

Needs root on Linux and the Debian packages in `PACKAGES`; `why_not` says what is missing.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

from tests.cluster.host_files import BOOT, SSH_CONFIG, SSHD_CONFIG
from tests.distributed import REPOSITORY

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""Command → Debian package."""

NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")
DIES_WITH_ME = ("setpriv", "--pdeathsig", "KILL", "--")
SUBNET = "10.77.0"
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # a user's PATH may lack sshd and ip


def why_not() -> str | None:
    """Why there can be no lab on this machine, for a person; None if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    packages = {package for command, package in PACKAGES.items() if shutil.which(command, path=SEARCH_PATH) is None}
    if packages:
        return f"not installed: {', '.join(sorted(packages))} (apt-get install)"
    tried = _run(["unshare", *NAMESPACES, "--fork", "--mount-proc", "ip", "link", "add", "br0", "type", "bridge"])
    if tried.returncode != 0:
        return f"this machine does not allow namespaces ({tried.stderr.strip() or tried.returncode})"
    return None


class Host:
    """A machine of the lab. Process numbers are those of the real machine's process list, which sees into all hosts."""

    def __init__(self, number: int, lab: "Lab"):
        self.name, self.address = f"node-{number}", f"{SUBNET}.{number}"
        self._lab, self._port = lab, f"port{number}"
        self._log = (lab.directory / f"{self.name}.log").open("wb")
        boot = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-e", "-c", BOOT]
        environment = {"PATH": SEARCH_PATH, "LAB": str(lab.directory), "NAME": self.name, "HOME": os.environ["HOME"]}
        self._unshare = Popen([*DIES_WITH_ME, *boot], env=environment, stdin=subprocess.DEVNULL,
                                         stdout=self._log, stderr=subprocess.STDOUT)  # fmt: skip
        self.init = _only_child(self._unshare.pid)
        _wait_until((lab.directory / f"{self.name}.up").exists, self.name)
        lab.in_switch(f"ip link add {self._port} type veth peer name eth0 netns {self.init}")
        lab.in_switch(f"ip link set {self._port} up master switch")
        enter_network = ["nsenter", "--net", "--target", str(self.init)]
        _run([*enter_network, "ip", "addr", "add", f"{self.address}/24", "dev", "eth0"], check=True)
        _run([*enter_network, "ip", "link", "set", "eth0", "up"], check=True)

    def start(self, command: Sequence[str], environment: dict[str, str] | None = None, **popen: Any) -> Popen:
        """A command on this host, in the project's folder. The process returned is its parent, outside."""
        enter = ["nsenter", "--target", str(self.init), *NAMESPACES, "--", "env", f"--chdir={REPOSITORY}"]
        return Popen([*enter, *command], env=environment, **popen)

    def run(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(command, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def path(self, inside: Path) -> Path:
        """A path on this host, its own disk for instance, as it is reached from outside while the host is up."""
        return Path(f"/proc/{self.init}/root{inside}")

    def processes(self) -> Iterator[psutil.Process]:
        """All that run on this host, the first process and sshd left out."""
        namespace = _namespace(self.init, "pid")
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            system = process.pid == self.init or words[0].startswith("sshd:")
            if namespace and not system and _namespace(process.pid, "pid") == namespace:
                yield process

    def cut(self) -> None:
        """The cable: packets in both directions vanish, and nobody is told."""
        self._lab.in_switch(f"ip link set {self._port} down")

    def mend(self) -> None:
        self._lab.in_switch(f"ip link set {self._port} up")

    def power_off(self) -> None:
        """First the cable, so that no closing connection says good-bye; then every process at once."""
        self.cut()
        self.stop()

    def stop(self) -> None:
        self._unshare.kill()
        self._unshare.wait()
        _wait_until(lambda: not psutil.pid_exists(self.init), f"the end of {self.name}")
        self._log.close()


class Lab:
    """`count` hosts, node-1 and so on, made on entering and gone on leaving. Raises `RuntimeError` with `why_not`."""

    def __init__(self, count: int, directory: Path):
        self.directory = directory.resolve()
        self.local_disk = self.directory / "disk"
        self.hosts: list[Host] = []
        self._count = count
        self._switch: Popen | None = None

    def __enter__(self) -> "Lab":
        if reason := why_not():
            raise RuntimeError(reason)
        try:
            self._write_files()
            self._switch = Popen([*DIES_WITH_ME, "unshare", "--net", "sleep", "infinity"])
            switch = self._switch.pid
            _wait_until(lambda: _namespace(switch, "net") != _namespace(os.getpid(), "net"), "the switch")
            self.in_switch("ip link add switch type bridge")
            self.in_switch("ip link set switch up")
            for number in range(1, self._count + 1):
                self.hosts.append(Host(number, self))
            for host in self.hosts:
                _wait_until(partial(_answers_ssh, host), f"sshd of {host.name}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.stop()
        if self._switch:
            self._switch.kill()
            self._switch.wait()

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def hostfile(self, slots: dict[str, int]) -> Path:
        """`slots`: ranks by host."""
        path = self.directory / "hostfile"
        path.write_text("".join(f"{name} slots={number}\n" for name, number in slots.items()))
        return path

    def in_switch(self, command: str) -> None:
        assert self._switch is not None
        _run(["nsenter", "--net", "--target", str(self._switch.pid), *command.split()], check=True)

    def _write_files(self) -> None:
        self.local_disk.mkdir(parents=True)
        for key in ("host_key", "user_key"):
            _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / key)], check=True)
        public = (self.directory / "host_key.pub").read_text()
        (self.directory / "known_hosts").write_text(f"* {public}")
        lines = [f"{SUBNET}.{number} node-{number}\n" for number in range(1, self._count + 1)]
        (self.directory / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
        (self.directory / "sshd_config").write_text(SSHD_CONFIG.format(lab=self.directory))
        (self.directory / "ssh_config").write_text(SSH_CONFIG.format(lab=self.directory))


def _run(command: Sequence[str], check: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=os.environ | {"PATH": SEARCH_PATH}, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done


def _answers_ssh(host: Host) -> bool:
    return host.run("ssh", host.name, "true").returncode == 0


def _only_child(pid: int) -> int:
    """`unshare --fork`'s child, the first process of a host: once it is in its own namespaces."""
    _wait_until(lambda: bool(psutil.Process(pid).children()), "the first process of a host")
    (child,) = psutil.Process(pid).children()
    return child.pid


def _namespace(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None  # it has ended


def _wait_until(condition: Any, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come in {seconds:g} s")
        time.sleep(0.05)
