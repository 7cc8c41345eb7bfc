"""The study's pre-trainings, as jobs, and what their logs say of the time that they took."""

from collections.abc import Sequence
from pathlib import Path

import torch

from studies.continuations import Continuation
from studies.runner import Job
from studies.trials import GLOBAL_BATCH, Trial
from trainer.checkpoint.manifest import directory_name
from trainer.data.shard_index import ShardIndex
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained.weights import Pretrained, from_localmim
from trainer.tracking.metrics import read_metrics


def pretrainings(trials: Sequence[Trial], shards: Path, folder: Path) -> list[Job]:
    """A job for each trial, in the same order; its run is in `folder` and has the trial's name."""
    steps_per_epoch = ShardIndex.open(shards).num_samples // GLOBAL_BATCH
    return [
        Job("pretrain.py", trial.recipe(steps_per_epoch), ("--data", shards), folder / trial.name) for trial in trials
    ]


def checkpoint(folder: Path, trial: Trial | Continuation, step: int) -> Path:
    return folder / trial.name / "checkpoints" / directory_name(step)


def untrained(trial: Trial) -> Pretrained:
    """The weights that its run begins with."""
    config = ModelConfig(**trial.model)
    torch.manual_seed(trial.seed)
    weights = {name: parameter.detach() for name, parameter in LocalMIM(config).named_parameters()}
    return from_localmim(config, weights, f"seed {trial.seed}", {})


def seconds_until(run: Path, step: int) -> float:
    """Wall time of a run's first so many steps, as its log has it."""
    seconds, before = 0.0, 0
    for event in read_metrics(run):
        if event["event"] == "step" and event["step"] <= step:
            seconds += event["step_seconds"] * (event["step"] - before)
            before = event["step"]
    return seconds
