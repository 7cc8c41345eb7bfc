"""One start of the training command: its ranks, what they print, and how they end."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.distributed import REPOSITORY

SCRIPT = Path(__file__).with_name("rank.py")
START_SECONDS = 240
"""Until the first step; four ranks import DeepSpeed on what may be two busy cores."""
END_SECONDS = 150
"""How long ranks may take to save and leave, or to notice that another one is gone."""


@dataclass(frozen=True)
class Layout:
    """What may differ between two attempts at one training."""

    ranks: int
    stage: int
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' if self.ranks > 1 else ''}, ZeRO-{self.stage}, {self.precision}"

    def ds_config(self) -> dict:
        return {"zero_optimization": {"stage": self.stage}, "bf16": {"enabled": self.precision == "bf16"}}


class Attempt:
    """The running processes. `through_launcher` starts them by the deepspeed command, else each directly."""

    def __init__(self, run: Path, number: int, layout: Layout, recipe: Path, shards: Path, through_launcher: bool):
        self.run, self.layout = run, layout
        self.log = run.with_name(f"{run.name}_{number:03d}.log")
        self.through_launcher = through_launcher
        ds_config = run.with_name(f"{run.name}_{number:03d}.json")
        ds_config.write_text(json.dumps(layout.ds_config()))
        keys = run.with_name(f"{run.name}_keys") / f"{number:03d}"
        keys.parent.mkdir(exist_ok=True)
        self._environment = environment() | {"SOAK_KEYS": str(keys)}
        arguments = ["--ds_config", ds_config, "--recipe", recipe, "--data", shards, "--output", run]
        with self.log.open("wb") as log:
            self.processes = (
                [self._start_launcher(arguments, log)] if through_launcher else self._start_ranks(arguments, log)
            )
        self._ranks: dict[int, psutil.Process] = {}

    def _start_launcher(self, arguments: list, log) -> subprocess.Popen:
        launcher = [Path(sys.executable).parent / "deepspeed", "--num_gpus", self.layout.ranks]
        command = [*launcher, "--master_port", free_port(), SCRIPT, *arguments]
        return subprocess.Popen(
            [str(w) for w in command], env=self._environment, cwd=REPOSITORY, stdout=log, stderr=log
        )

    def _start_ranks(self, arguments: list, log) -> list[subprocess.Popen]:
        command = [str(word) for word in [sys.executable, SCRIPT, *arguments]]
        shared = self._environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {"WORLD_SIZE": str(self.layout.ranks), "LOCAL_WORLD_SIZE": str(self.layout.ranks)}
        return [
            subprocess.Popen(
                command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, cwd=REPOSITORY, stdout=log, stderr=log
            )
            for r in range(self.layout.ranks)
        ]

    def ranks(self) -> list[psutil.Process]:
        """The ranks' processes, in order; those that have not started yet, or are gone, are not among them."""
        found: list[psutil.Process] = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                start = psutil.Process(process.pid)
                found += start.children(recursive=True) if self.through_launcher else [start]
        for process in found:
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if len(command) > 1 and str(SCRIPT) in command and "deepspeed.launcher.launch" not in command:
                    rank = process.environ().get("RANK")
                    if rank is not None and process.pid not in {p.pid for p in self._ranks.values()}:
                        self._ranks.setdefault(int(rank), process)
        return [self._ranks[rank] for rank in sorted(self._ranks) if self._ranks[rank].is_running()]

    def wait_for(self, reached, seconds: float) -> bool:
        """Poll until `reached()` is true; False if the attempt ended or the time was up before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if reached():
                return True
            if all(process.poll() is not None for process in self.processes):
                return reached()
            time.sleep(0.005)
        return False

    def wait(self) -> bool:
        """Whether all processes ended by themselves in time; what is left is killed."""
        family = self._family()
        deadline = time.monotonic() + END_SECONDS
        for process in self.processes:  # before psutil, which would take the exit codes and leave 0 for `codes`
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
        _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes:
            process.wait()
        return not alive

    def codes(self) -> list[int]:
        return [process.returncode for process in self.processes]

    def resumed_at(self) -> int | None:
        """The step that the attempt says it resumed at; 0 for a new run; None if it did not come so far."""
        text = self.log.read_text(errors="replace")
        if found := re.search(r"resuming from \S+ at step (\d+)", text):
            return int(found.group(1))
        return 0 if re.search(r"\d+ steps of \d+ images", text) else None

    def _family(self) -> list[psutil.Process]:
        """Processes, ranks and the ranks' data workers."""
        family = {process.pid: process for process in self.ranks()}
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                start = psutil.Process(process.pid)
                family |= {p.pid: p for p in [start, *start.children(recursive=True)]}
        return list(family.values())


def environment() -> dict[str, str]:
    launcher_made = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launcher_made)}
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path}


def free_port() -> int:
    """A port of now; below the range that the system hands out by itself, so that nobody takes it meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
