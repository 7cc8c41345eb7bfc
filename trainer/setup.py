"""What happens once, between a checked plan and the first step: process group, checkpoint choice, run directory."""

import copy
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedConfig
from deepspeed.accelerator import get_accelerator
from pydantic import ValidationError

from trainer.checkpoint.find import checkpoint_candidates, first_whole, verify_together
from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, list_checkpoints, read_manifest, step_of
from trainer.checkpoint.reader import Checkpoint
from trainer.data.urls import redact
from trainer.engine.process_group import join_process_group
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig
from trainer.files import write_text
from trainer.plan import AnyPlan, RunPlan
from trainer.pretrained.initial import InitialWeights, read_together
from trainer.ranks import Ranks, export_ranks, from_rank_zero
from trainer.recipe import differing_keys, dump_recipe, parse_kind
from trainer.run_lock import RunLock
from trainer.tracking.console import Console
from trainer.watchdog import keep_flight_recorder

# What may change between a checkpoint and the run that continues it: the images, masks, rates and freezes of every step
# stay the same. (Another precision or micro-batch rounds differently, and so does a compiled block.)
FREE_TO_CHANGE = {
    "train.micro_batch",
    "train.precision",
    "train.compile",
    "train.checkpoint_activations",
    "train.stop_after",
    "train.max_bad_steps",
    "train.hang_timeout",
    "train.profile",
    "freezing.rebatch",
    "freezing.memory_budget",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.read_ahead",
    "data.retries",
    "data.timeout",
    "data.cache",
    "data.cache_size",
    "data.on_bad_sample",
    "checkpoint.every_steps",
    "checkpoint.every_epochs",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "checkpoint.on_error",
    "tracking.log_every",
    "tracking.tensorboard",
    "tracking.pictures",
    "tracking.pictures_at",
    "tracking.picture_images",
    "validation.path",
    "validation.every_epochs",
    "validation.batch",
    *(f"evaluation.{key}" for key in EvaluationConfig.model_fields),  # it changes nothing of the training
}

DEEPSPEED_SECTIONS = {
    "DeepSpeedZeroConfig": "zero_optimization",
    "DeepSpeedBF16Config": "bf16",
    "DeepSpeedFP16Config": "fp16",
    "CommsLoggerConfig": "comms_logger",
    "DeepSpeedThroughputTimerConfig": "timers.throughput",
}
"""The classes that DeepSpeed checks sections with → the sections' names in the JSON."""


def start_process_group(ranks: Ranks, timeout: timedelta) -> torch.device:
    """Join the other ranks (NCCL on GPUs, gloo on CPUs) and return this rank's device. `timeout`: of collectives."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    export_ranks(ranks)
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # the deepspeed launcher leaves it unset: ranks would share all cores
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // ranks.local_world_size))
    else:
        accelerator.set_device(ranks.local_rank)
        device = torch.device(accelerator.device_name(ranks.local_rank))
    keep_flight_recorder()
    join_process_group(timeout=timeout)
    return device


@contextmanager
def holding_output(plan: AnyPlan) -> Iterator[None]:
    """The run directory is this run's alone until the block ends, or until the process does where the block raises
    anything but `BadInput`: a save may still be under way. Collective. Raises `BadInput`, see `RunLock`."""
    held: list[RunLock] = []
    from_rank_zero(lambda: held.append(RunLock(plan.output, Console(0).say)))

    def release() -> None:
        for lock in held:
            lock.release()

    try:
        yield
    except BadInput:
        release()
        raise
    release()


def choose_checkpoint(plan: AnyPlan, resume: str) -> Checkpoint | None:
    """The checkpoint to continue from, the same on every rank; None = start anew. Changes nothing on disk.

    Raises `BadInput` if it is not of this recipe, these shards and this model."""
    say = Console(plan.ranks.rank).say
    candidates = from_rank_zero(lambda: checkpoint_candidates(plan.checkpoints, resume))
    path = first_whole(candidates, resume, say, lambda directory: verify_together(directory, say))
    if path is None:
        return None
    from_rank_zero(lambda: _refuse_another_run(plan, read_manifest(path), path))
    try:
        checkpoint = Checkpoint(path)
    except DamagedCheckpoint as error:
        raise BadInput(str(error)) from None
    _refuse_another_model(plan, checkpoint)
    return checkpoint


def choose_initial_weights(plan: RunPlan, init: Path | None, checkpoint: Checkpoint | None) -> InitialWeights | None:
    """What `--init` gives a run that does not go on from a checkpoint. Collective; changes nothing on disk.

    Raises `BadInput` if it does not fit the recipe's model."""
    if init is None:
        return None
    say = Console(plan.ranks.rank).say
    if checkpoint:
        say(f"--init {init} is not read: the run has begun already, and goes on from {checkpoint.directory}")
        return None
    return read_together(init, plan.recipe.model, say)


def _refuse_another_run(plan: AnyPlan, manifest: Manifest, path: Path) -> None:
    then = parse_kind(type(plan.recipe), manifest.recipe, f"{path}/manifest.json")
    for key, (before, now) in differing_keys(then, plan.recipe).items():
        if key not in FREE_TO_CHANGE:
            raise BadInput(
                f"resuming from {path}: {key} was {before!r} and is {now!r} now; set it back, or start anew in another "
                "--output"
            )
    if manifest.index_hash != plan.index.content_hash:
        raise BadInput(
            f"resuming from {path}: {plan.index.name} holds other shards than it was trained on; give those, or "
            "start anew in another --output"
        )


def _refuse_another_model(plan: AnyPlan, checkpoint: Checkpoint) -> None:
    """The same recipe may make other shapes in another version of the program. Takes no memory for the weights."""
    with torch.device("meta"):
        model = plan.new_model()
    checkpoint.require_fits(model)
    try:
        model.freeze_prefix(checkpoint.manifest.frozen_units)
    except ValueError as error:
        raise BadInput(f"{checkpoint.directory}: {error}; give another checkpoint") from None


def prepare_output(plan: AnyPlan, checkpoint: Checkpoint | None) -> None:
    """The run directory as the first step needs it, on disk and seen by all ranks. Collective.

    Comes after everything that can be refused by reading. Raises `BadInput` on every rank where DeepSpeed refuses the
    ds_config, before anything is written, where nothing can be, and where a rank does not see what is."""

    def on_rank_zero() -> None:
        _require_deepspeed_accepts(plan.ds.config)
        try:
            write_run_files(plan, checkpoint.manifest.step if checkpoint else None)
        except OSError as error:
            raise BadInput(
                f"--output {plan.output}: cannot be written ({error.strerror}): choose another, or mend that"
            ) from None

    from_rank_zero(on_rank_zero)
    require_shared(plan.output, plan.checkpoints)


def require_shared(output: Path, folder: Path) -> None:
    """Find out before the first step, not at the first save, that `output` is each machine's own. Collective.

    `folder` is one in it that rank 0 has just made. Raises `BadInput` on every rank if one of them does not see it."""
    seen: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, None if os.path.isdir(folder) else str(output))
    for rank, its_output in enumerate(seen):
        if its_output is not None:
            raise BadInput(
                f"rank {rank} does not see --output {its_output} as rank 0 does: give a folder that all machines share"
            )


def write_run_files(plan: AnyPlan, step: int | None) -> None:
    """RUN/recipe.yaml, ds_config.json and environment.json, as resolved, and its folders, to go on from `step`.

    Raises OSError."""
    for directory in (plan.output, plan.checkpoints, plan.logs, plan.output / "pictures"):
        directory.mkdir(parents=True, exist_ok=True)
    if step is not None:
        _set_aside_beyond(plan, step)
    write_text(plan.output / "recipe.yaml", dump_recipe(plan.recipe))
    write_text(plan.output / "ds_config.json", json.dumps(plan.ds.config, indent=2) + "\n")
    write_text(plan.output / "environment.json", json.dumps(_environment(plan), indent=2) + "\n")


def _set_aside_beyond(plan: AnyPlan, step: int) -> None:
    """Rename what lies beyond the chosen checkpoint, damaged or of a future given up by `--resume PATH`.

    The run is about to write those steps anew, and neither pruning nor the next `--resume auto` may mix the two up."""
    for directory in list_checkpoints(plan.checkpoints):
        if step_of(directory) > step:
            aside = directory.with_name(f"set_aside_{directory.name}_{time.strftime('%Y%m%d_%H%M%S')}")
            directory.rename(aside)
            Console(0).say(f"set aside {directory.name}, which lies beyond step {step}: delete {aside} if unwanted")


def _require_deepspeed_accepts(config: dict) -> None:
    """The check that `deepspeed.initialize` makes too, but in its own words and only once the model is there.

    Raises `BadInput` naming the key."""
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except ValidationError as error:
        first = error.errors()[0]
        section = DEEPSPEED_SECTIONS.get(error.title, error.title)
        key = ".".join(map(str, (section, *first["loc"])))
        message = "unknown key" if first["type"] == "extra_forbidden" else f"{first['msg']} (given: {first['input']!r})"
        raise BadInput(f"ds_config: {key}: {message}; mend or remove it") from None
    except Exception as error:  # DeepSpeed has no class of its own for the others
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"ds_config: DeepSpeed refuses it ({why}): mend that key") from None


def _environment(plan: AnyPlan) -> dict:
    """Enough to tell two runs apart. No environment variables: they may hold secrets, as URLs may."""
    accelerator = get_accelerator()
    return {
        "command": [redact(word) for word in sys.argv],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "deepspeed", "timm", "webdataset", "safetensors")},
        "platform": platform.platform(),
        "accelerator": accelerator.device_name(),
        "device": torch.cuda.get_device_name() if accelerator.device_name() == "cuda" else platform.processor(),
        "cpu_threads": torch.get_num_threads(),
        "world_size": plan.ranks.world_size,
        "shards": {"path": plan.index.name, "samples": plan.index.num_samples, "hash": plan.index.content_hash},
    }
