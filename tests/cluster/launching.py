"""Trainings on the hosts of a lab: `tests.launch.running.Run`, with processes on several machines."""

import os
from pathlib import Path

import psutil

from tests.cluster.lab import Host, Lab
from tests.launch.running import BIN, REPOSITORY, Run

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

    def start_pdsh(self, slots: dict[str, int], *overrides: str, ds_config: str | Path) -> None:
        """`deepspeed --hostfile` on the first of these hosts, which reaches all, itself too, through pdsh and ssh.
        `slots`: ranks by host."""
        launcher = [str(BIN / "deepspeed"), "--hostfile", str(self.lab.hostfile(slots)), "--force_multi"]
        self.start_on(self.lab.host(next(iter(slots))), launcher, *overrides, ds_config=ds_config)

    def start_on(self, host: Host, launcher: list[str], *overrides: str, ds_config: str | Path) -> None:
        command = [*launcher, *self.program(*overrides, ds_config=ds_config)]
        with self._output.open("w") as output:
            self._process = host.start(command, environment_of_a_host(self.lab), stdout=output, stderr=output)

    def log(self, rank: int) -> str:
        return (self.directory / "logs" / f"rank_{rank:05d}.log").read_text()

    def _children(self) -> list[psutil.Process]:
        return [process for host in self.lab.hosts for process in host.processes()]
