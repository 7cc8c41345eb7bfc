"""Runs trials by launch/pretrain.py, one rank and one thread each, and takes up what was interrupted."""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from studies.trials import GLOBAL_BATCH, Trial
from trainer.data.shard_index import ShardIndex
from trainer.files import write_text
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]


class TrialFailed(RuntimeError):
    """A pre-training ended with another exit code than 0."""


def run_missing(trials: Iterable[Trial], shards: Path, folder: Path, *, at_once: int) -> None:
    """Run those trials that have not ended yet, in their order, `at_once` side by side. Raises `TrialFailed`."""
    missing = [trial for trial in trials if not is_done(folder / trial.name)]
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_run, trial, shards, folder / trial.name) for trial in missing]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def is_done(run: Path) -> bool:
    return (run / "metrics.jsonl").is_file() and any(event["event"] == "end" for event in read_metrics(run))


def _run(trial: Trial, shards: Path, run: Path) -> None:
    recipe, log = (run.with_name(run.name + ending) for ending in (".yaml", ".log"))  # names of runs hold dots
    run.parent.mkdir(parents=True, exist_ok=True)
    steps_per_epoch = ShardIndex.open(shards).num_samples // GLOBAL_BATCH
    write_text(recipe, yaml.safe_dump(trial.recipe(steps_per_epoch), sort_keys=False))
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    print(f"{trial.name}: started", flush=True)
    with log.open("a") as output:
        code = subprocess.run(
            [sys.executable, REPOSITORY / "launch/pretrain.py", "--ds_config", REPOSITORY / "ds_configs/zero2_cpu.json",
             "--recipe", recipe, "--data", shards, "--output", run],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    if code:
        raise TrialFailed(f"{trial.name} ended with exit code {code}: see {log}")
    print(f"{trial.name}: done", flush=True)
