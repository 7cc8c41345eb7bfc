"""Runs trials by launch/pretrain.py, one rank and one thread each, and takes up what was interrupted."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import yaml

from studies.trials import GLOBAL_BATCH, Trial
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.files import write_text
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]


class TrialFailed(RuntimeError):
    """A pre-training ended with another exit code than 0."""


def run_missing(trials: Sequence[Trial], shards: Path, folder: Path, *, at_once: int) -> None:
    """Run those trials that have not ended yet, in their order, `at_once` side by side.

    Raises `TrialFailed`, and `BadInput` for a run that was made with another recipe."""
    steps_per_epoch = ShardIndex.open(shards).num_samples // GLOBAL_BATCH
    for trial in trials:
        _write_recipe(trial, steps_per_epoch, folder / trial.name)
    missing = [folder / trial.name for trial in trials if not is_done(folder / trial.name)]
    failed = Event()
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(_run_unless, failed, shards, run) for run in missing]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def is_done(run: Path) -> bool:
    return (run / "metrics.jsonl").is_file() and any(event["event"] == "end" for event in read_metrics(run))


def _write_recipe(trial: Trial, steps_per_epoch: int, run: Path) -> None:
    recipe, text = _beside(run, ".yaml"), yaml.safe_dump(trial.recipe(steps_per_epoch), sort_keys=False)
    if run.is_dir() and recipe.is_file() and recipe.read_text() != text:
        raise BadInput(f"{run} was made with another recipe, {recipe}: delete both, or give another --work")
    run.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, text)


def _beside(run: Path, ending: str) -> Path:
    return run.with_name(run.name + ending)  # with_suffix would cut at the dot of "0.8"


def _run_unless(failed: Event, shards: Path, run: Path) -> None:
    """Nothing is started after a failure, which a thread of the pool would do before the main thread hears of it."""
    if failed.is_set():
        return
    try:
        _run(shards, run)
    except BaseException:
        failed.set()
        raise


def _run(shards: Path, run: Path) -> None:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)}
    print(f"{run.name}: started", flush=True)
    log = _beside(run, ".log")
    with log.open("a") as output:
        code = subprocess.run(
            [sys.executable, REPOSITORY / "launch/pretrain.py", "--ds_config", REPOSITORY / "ds_configs/zero2_cpu.json",
             "--recipe", _beside(run, ".yaml"), "--data", shards, "--output", run],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    if code:
        raise TrialFailed(f"{run.name} ended with exit code {code}: see {log}")
    print(f"{run.name}: done", flush=True)
