"""A real Slurm on the hosts of a lab: munge and slurmd on each, slurmctld on the first; no systemd, nothing installed.

All of it runs inside the hosts and ends with them. Debian: `apt-get install slurmctld slurmd slurm-client munge`.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from tests.cluster.lab import SEARCH_PATH, Lab
from tests.cluster.launching import ClusterRun, environment_of_a_host

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}

CONFIGURATION = """
ClusterName=lab
SlurmctldHost=node-1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that was queued again waits for its old credential to expire, two minutes by default
AuthInfo=cred_expire=2
StateSaveLocation={folder}/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=node-[1-{hosts}] CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

GPUS = """
NodeName=node-[1-{hosts}] Name=gpu File=/dev/null
NodeName=node-[1-{hosts}] Name=gpu File=/dev/zero
"""
"""Two on each host, of which Slurm need only believe that they are some."""

MUNGE = (
    "mkdir -p /run/munge && munged --force --key-file {folder}/munge.key --socket /run/munge/munge.socket.2 "
    "--pid-file /run/munge/munged.pid --log-file /run/munge/munged.log --seed-file /run/munge/munged.seed"
)


def why_no_slurm() -> str | None:
    missing = {package for command, package in PACKAGES.items() if shutil.which(command, path=SEARCH_PATH) is None}
    return f"not installed: {', '.join(sorted(missing))} (apt-get install)" if missing else None


class Slurm:
    def __init__(self, lab: Lab):
        """Start it, and wait until all hosts are ready for jobs."""
        self._lab, self._folder = lab, lab.directory / "slurm"
        (self._folder / "state").mkdir(parents=True)
        self._configuration = self._folder / "slurm.conf"
        self._configuration.write_text(CONFIGURATION.format(folder=self._folder, hosts=len(lab.hosts)))
        (self._folder / "gres.conf").write_text(GPUS.format(hosts=len(lab.hosts)))
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for host in lab.hosts:
            self._on(host.name, MUNGE.format(folder=self._folder))
        self._on("node-1", "slurmctld")
        for host in lab.hosts:
            self._on(host.name, "slurmd")
        self._wait_for(f"{len(lab.hosts)}", "sinfo", "--noheader", "--states=idle", "--format=%D")

    def submit(self, run: ClusterRun, *arguments: str, ds_config: Path, options: list[str]) -> str:
        """`sbatch launch/cluster/pretrain.sbatch` from the project's folder; the job's number."""
        batch = ["sbatch", "--parsable", f"--output={run.output}", *options, "launch/cluster/pretrain.sbatch"]
        return self.call(*batch, *run.program(*arguments, ds_config=ds_config)[1:]).strip()

    def call(self, *command: str) -> str:
        done = self._lab.hosts[0].run(
            "env", f"SLURM_CONF={self._configuration}", *command, environment=self._environment
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """RUNNING, COMPLETED, ..."""
        shown = self.call("scontrol", "show", "job", "--oneliner", job)
        return next(word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState="))

    def wait_for_step(self, job: str, run: ClusterRun, step: int) -> None:
        deadline = time.monotonic() + 600
        while not run.reached(step):
            assert self.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), run.printed[-3000:]
            assert time.monotonic() < deadline, f"step {step} was not reached in time\n{run.printed[-3000:]}"
            time.sleep(1)

    def wait_for_end(self, job: str) -> str:
        """The state in which a job ended, queued again or not."""
        deadline = time.monotonic() + 600
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"):
            assert time.monotonic() < deadline, f"job {job} is still {state}"
            time.sleep(1)
        return state

    @property
    def _environment(self) -> dict[str, str]:
        return environment_of_a_host(self._lab) | {"PYTHON": sys.executable}

    def _on(self, host: str, command: str) -> None:
        done = self._lab.host(host).run("sh", "-c", f"SLURM_CONF={self._configuration} {command}")
        assert done.returncode == 0, f"{command} on {host}: {done.stderr}"

    def _wait_for(self, answer: str, *command: str) -> None:
        deadline = time.monotonic() + 60
        while self.call(*command).strip() != answer:
            assert time.monotonic() < deadline, f"{command} never said {answer}; see {self._folder}"
            time.sleep(0.5)
