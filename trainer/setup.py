"""What happens once, between a checked plan and the first step: process group, checkpoint choice, run directory."""

import copy
import json
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedConfig
from deepspeed.accelerator import get_accelerator
from pydantic import ValidationError

from trainer.checkpoint.find import WholeCheckpoint, checkpoint_candidates, first_whole, verify_together
from trainer.checkpoint.gather import gather
from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, list_checkpoints, set_aside, step_of
from trainer.checkpoint.reader import Checkpoint
from trainer.data.urls import redact
from trainer.engine.process_group import join_process_group
from trainer.errors import BadInput, cannot_be_written
from trainer.evaluation.config import EvaluationConfig
from trainer.files import write_text
from trainer.plan import AnyPlan, RunPlan
from trainer.pretrained.initial import InitialWeights, read_together
from trainer.ranks import Ranks, export_ranks, from_rank_zero
from trainer.recipe import differing_keys, dump_recipe, parse_kind
from trainer.run_lock import RunLock
from trainer.storages import Storages, finding_storages
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
def holding_output(output: Path) -> Iterator[Storages]:
    """The run directory is this run's alone, on every storage that its ranks see under that name, until the block ends;
    or until the process does where the block raises anything but `BadInput`: a save may still be under way. Collective.
    Raises `BadInput` on every rank, see `finding_storages` and `RunLock`."""
    with finding_storages(output) as storages:
        held: list[RunLock] = []

        def take(leads: bool) -> None:
            if leads:
                held.append(RunLock(output, storages.say))

        try:
            # that of rank 0 first: of two runs on the same machines one gets in, instead of each keeping out the other
            storages.on_each(lambda: take(storages.rank == 0))
            storages.on_each(lambda: take(storages.rank != 0))
            if storages.several:
                Console(storages.rank).say(f"--output {output}: {storages.describe()}")
            yield storages
        except BadInput:
            _release(held)
            raise
        _release(held)


def _release(held: list[RunLock]) -> None:
    for lock in held:
        lock.release()


def choose_checkpoint(plan: AnyPlan, resume: str, storages: Storages) -> Checkpoint | None:
    """The checkpoint to continue from, the same on every rank; None = start anew. Collective.

    `storages`: of the output. Changes nothing on disk but where they are several: then each of them gets what it lacks
    of the checkpoint. Raises `BadInput` if it is not of this recipe, these shards and this model."""
    say = Console(plan.ranks.rank).say
    with _storages_of(resume, storages) as there:
        candidates = checkpoint_candidates(plan.checkpoints, resume, there.on_each)
        whole: list[WholeCheckpoint] = []
        path = first_whole(
            candidates, resume, say, lambda directory: whole.append(verify_together(directory, say, there))
        )
        if path is None:
            return None
        from_rank_zero(lambda: _refuse_another_run(plan, whole[-1].manifest, path))
        gather(path, whole[-1], there, say)
    try:
        checkpoint = Checkpoint(path)
    except DamagedCheckpoint as error:
        raise BadInput(str(error)) from None
    _refuse_another_model(plan, checkpoint)
    return checkpoint


@contextmanager
def _storages_of(resume: str, storages: Storages) -> Iterator[Storages]:
    """Those of `--resume PATH` may be others than those of the output: the one may be shared and the other not."""
    with ExitStack() as stack:
        if resume not in ("auto", "never") and any(_on_all_ranks(os.path.exists(resume))):
            # where nobody may write into PATH, nothing can be gathered there either, and what is whole will do
            with suppress(BadInput):
                storages = stack.enter_context(finding_storages(Path(resume)))
        yield storages


def _on_all_ranks(value: bool) -> list[bool]:
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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


def prepare_output(plan: AnyPlan, checkpoint: Checkpoint | None, storages: Storages) -> None:
    """The run directory as the first step needs it, on disk on every storage. Collective.

    Comes after everything that can be refused by reading. Raises `BadInput` on every rank where DeepSpeed refuses the
    ds_config, before anything is written, and where nothing can be."""
    step = checkpoint.manifest.step if checkpoint else None

    def prepare() -> None:
        try:
            make_folders(plan, step)
            if storages.rank == 0:
                write_run_files(plan)
        except OSError as error:
            raise cannot_be_written(plan.output, error) from None

    from_rank_zero(lambda: _require_deepspeed_accepts(plan.ds.config))
    storages.on_each(prepare)


def make_folders(plan: AnyPlan, step: int | None) -> None:
    """The folders of RUN that ranks write into, to go on from `step`; None = from the start. Raises OSError."""
    for directory in (plan.checkpoints, plan.logs):
        directory.mkdir(parents=True, exist_ok=True)
    if step is not None:
        _set_aside_beyond(plan, step)


def write_run_files(plan: AnyPlan) -> None:
    """RUN/recipe.yaml, ds_config.json and environment.json, as resolved. Raises OSError."""
    (plan.output / "pictures").mkdir(exist_ok=True)
    write_text(plan.output / "recipe.yaml", dump_recipe(plan.recipe))
    write_text(plan.output / "ds_config.json", json.dumps(plan.ds.config, indent=2) + "\n")
    write_text(plan.output / "environment.json", json.dumps(_environment(plan), indent=2) + "\n")


def _set_aside_beyond(plan: AnyPlan, step: int) -> None:
    """Rename what lies beyond the chosen checkpoint, damaged or of a future given up by `--resume PATH`.

    The run is about to write those steps anew, and neither pruning nor the next `--resume auto` may mix the two up."""
    for directory in list_checkpoints(plan.checkpoints):
        if step_of(directory) > step:
            aside = set_aside(directory)
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
