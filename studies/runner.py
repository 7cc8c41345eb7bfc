"""Runs commands of launch/, one rank and one thread each, and takes up what was interrupted."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import yaml

from trainer.errors import BadInput
from trainer.files import write_text
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]


class RunFailed(RuntimeError):
    """A command ended with another exit code than 0."""


@dataclass(frozen=True)
class Job:
    """`script` of launch/, its recipe, its further arguments, and the folder of its run. Beside that folder lie the
    recipe and what the command printed."""

    script: str
    recipe: dict[str, Any]
    arguments: Sequence[str | Path]
    run: Path

    @property
    def is_done(self) -> bool:
        return (self.run / "metrics.jsonl").is_file() and any(e["event"] == "end" for e in read_metrics(self.run))

    def beside(self, ending: str) -> Path:
        return self.run.with_name(self.run.name + ending)  # with_suffix would cut at the dot of "0.8"

    def write_recipe(self) -> None:
        """Raises `BadInput` where the run was made with another."""
        path, text = self.beside(".yaml"), yaml.safe_dump(self.recipe, sort_keys=False)
        if self.run.is_dir() and path.is_file() and path.read_text() != text:
            raise BadInput(f"{self.run} was made with another recipe, {path}: delete both, or give another --work")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)

    def execute(self) -> None:
        """Raises `RunFailed`."""
        launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in launcher}
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
        print(f"{self.run.name}: started", flush=True)
        log = self.beside(".log")
        with log.open("a") as output:
            code = subprocess.run(
                [sys.executable, REPOSITORY / "launch" / self.script, "--ds_config",
                 REPOSITORY / "ds_configs/zero2_cpu.json", "--recipe", self.beside(".yaml"), "--output", self.run,
                 *self.arguments],
                env=environment, stdout=output, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        if code:
            raise RunFailed(f"{self.run.name} ended with exit code {code}: see {log}")
        print(f"{self.run.name}: done", flush=True)


def run_missing(jobs: Sequence[Job], *, at_once: int) -> None:
    """Run those jobs that have not ended yet, in their order, `at_once` side by side.

    Raises `RunFailed`, and `BadInput` for a run that was made with another recipe."""
    for job in jobs:
        job.write_recipe()
    failed = Event()
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_execute_unless, failed, job) for job in jobs if not job.is_done]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _execute_unless(failed: Event, job: Job) -> None:
    """Nothing is started after a failure, which a thread of the pool would do before the main thread hears of it."""
    if failed.is_set():
        return
    try:
        job.execute()
    except BaseException:
        failed.set()
        raise
