"""Trainings on the hosts of a lab: `tests.launch.running.Run`, with processes on several machines."""

import os
from pathlib import Path
from subprocess import Popen

import psutil

from tests.cluster.lab import Host, Lab
from tests.launch.running import BIN, REPOSITORY, Run

LENGTH = "train.epochs=6"
"""108 steps, some seconds: time enough to hurt a run before it is over."""
SETTINGS = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def environment_of_a_host(lab: Lab) -> dict[str, str]:
    """What a user has in the shell on the first host. The deepspeed launcher sends next to nothing of it to the other
    hosts: `DS_ENV_FILE` names the file (elsewhere: ~/.deepspeed_env) of what it is to set there."""
    path = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    file = lab.directory / "deepspeed_env"
    file.write_text("".join(f"{name}={value}\n" for name, value in (SETTINGS | {"PATH": path}).items()))
    return SETTINGS | {
        "PATH": path,
        "HOME": os.environ["HOME"],
        "PYTHONPATH": str(REPOSITORY),
        "DS_ENV_FILE": str(file),
    }


class ClusterRun(Run):
    """A run directory, and the processes on the lab's hosts that work on it."""

    def __init__(self, lab: Lab, directory: Path, shards: Path):
        super().__init__(directory, shards)
        self.lab = lab
        self._elsewhere: list[Popen] = []
        self._own_disks: list[str] = []

    def put_on_own_disks(self) -> None:
        """From now on --output is on each host's own disk. `directory` is then what the first host has there."""
        inside = self.lab.local_disk / self.directory.name
        self._own_disks = ["--output", str(inside)]
        self.directory = self.lab.hosts[0].path(inside)

    def start_pdsh(self, slots: dict[str, int], *overrides: str, ds_config: str | Path) -> None:
        """`deepspeed --hostfile` on the first of these hosts, which reaches all, itself too, through pdsh and ssh.
        `slots`: ranks by host."""
        self.output.unlink(missing_ok=True)
        launcher = [str(BIN / "deepspeed"), "--hostfile", str(self.lab.hostfile(slots)), "--force_multi"]
        self._process = self._start_on(self.lab.host(next(iter(slots))), launcher, *overrides, ds_config=ds_config)

    def start_torchrun(self, slots: dict[str, int], *overrides: str, ds_config: str | Path) -> None:
        """One torchrun on each of these hosts; all meet at the first, whose command is the one that `end` waits for."""
        self.output.unlink(missing_ok=True)
        first = next(iter(slots))
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first}:29400", "--rdzv_id", "lab"]
        for name, ranks in slots.items():
            size = ["--nnodes", str(len(slots)), "--nproc_per_node", str(ranks), "--max_restarts", "2"]
            launcher = [str(BIN / "torchrun"), *size, *meeting]
            process = self._start_on(
                self.lab.host(name), launcher, *overrides, ds_config=ds_config, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
            )
            if name == first:
                self._process = process
            else:
                self._elsewhere.append(process)

    def kill(self) -> None:
        super().kill()
        for process in self._elsewhere:
            process.wait()

    def on_first_host(self, name: str) -> psutil.Process:
        """deepspeed (the command) or pdsh."""
        return next(
            p for p in self.lab.hosts[0].processes() if any(Path(word).name == name for word in p.cmdline()[:3])
        )

    def log(self, rank: int) -> str:
        return (self.directory / "logs" / f"rank_{rank:05d}.log").read_text()

    def _start_on(
        self, host: Host, launcher: list[str], *overrides: str, ds_config: str | Path, **environment: str
    ) -> Popen:
        command = [*launcher, *self.program(*self._own_disks, *overrides, ds_config=ds_config)]
        with self.output.open("a") as output:  # of all hosts
            return host.start(command, environment_of_a_host(self.lab) | environment, stdout=output, stderr=output)

    def _children(self) -> list[psutil.Process]:
        return [process for host in self.lab.hosts for process in host.processes()]
