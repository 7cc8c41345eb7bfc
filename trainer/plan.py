"""Everything about a run that is known, and can be refused, before a process group or an engine exists."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.micro_batches import MicroBatches
from trainer.data.order import LaneOrder, Positions
from trainer.data.source import DataSource, open_source, positions_of
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput
from trainer.freezing.rebatch import micro_batch_by_frozen_units, micro_batches_of_run
from trainer.freezing.schedule import FreezeSchedule
from trainer.ranks import Ranks
from trainer.recipe import Recipe


@dataclass(frozen=True)
class RunPlan:
    recipe: Recipe
    ds: ResolvedDsConfig
    index: DataSource
    schedule: FreezeSchedule
    micro_batches: MicroBatches
    steps_per_epoch: int
    total_steps: int
    output: Path
    ranks: Ranks

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.output / "logs"


def plan_run(recipe: Recipe, ds_config: Path, output: Path, ranks: Ranks) -> RunPlan:
    """Check recipe, ds_config, data and world size against each other. Raises `BadInput`; touches no device."""
    train = recipe.train
    ds = plan_engine(recipe, ds_config, ranks.world_size)
    index = open_source(recipe.data, ranks.rank)
    positions = positions_of(
        index, recipe.data, seed=train.seed, global_batch=train.global_batch, world_size=ranks.world_size
    )
    schedule = plan_schedule(recipe, positions.steps_per_epoch)
    micro_batches = plan_micro_batches(recipe, ds, ranks.world_size, schedule)
    return RunPlan(
        recipe, ds, index, schedule, micro_batches, positions.steps_per_epoch, schedule.total_steps, output, ranks
    )


def plan_engine(recipe: Recipe, ds_config: Path, world_size: int) -> ResolvedDsConfig:
    """The ds_config, complete and in agreement with the recipe. Raises `BadInput`."""
    train = recipe.train
    ds = resolve_ds_config(
        read_ds_config(ds_config),
        source=str(ds_config),
        world_size=world_size,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        precision=train.precision,
        clip_grad=recipe.optimizer.clip_grad,
    )
    if train.compile and ds.zero_stage == 3:
        raise BadInput(
            f"{ds_config}: zero_optimization.stage is 3 but the recipe's train.compile is true: ZeRO-3 gathers weights "
            "in the middle of a block, and a compiled block has no middle; use stage 1 or 2, or set train.compile=false"
        )
    return ds


def plan_schedule(recipe: Recipe, steps_per_epoch: int) -> FreezeSchedule:
    """Learning rates and freezes of the whole run. Raises `BadInput`, also for steps that it will not have."""
    try:
        schedule = FreezeSchedule(
            recipe.freezing,
            depth=recipe.model.num_blocks,
            total_steps=max(1, round(recipe.train.epochs * steps_per_epoch)),
            warmup_steps=round(recipe.optimizer.warmup_epochs * steps_per_epoch),
            lr=recipe.learning_rate,
            min_lr=recipe.optimizer.min_lr,
        )
    except ValueError as error:
        raise BadInput(f"recipe: {error}") from None
    profile = recipe.train.profile
    if profile and profile[-1] > schedule.total_steps:
        raise BadInput(
            f"train.profile: step {profile[-1]} lies beyond the run: name steps from 1 to {schedule.total_steps}"
        )
    return schedule


def plan_micro_batches(recipe: Recipe, ds: ResolvedDsConfig, world_size: int, schedule: FreezeSchedule) -> MicroBatches:
    """Micro-batches of the whole run; they change at freezes with `freezing.rebatch` only. Raises `BadInput`."""
    if not recipe.freezing.rebatch:
        return MicroBatches.always(ds.micro_batch)
    sizes = micro_batch_by_frozen_units(
        recipe.model,
        ds,
        world_size,
        recipe.freezing.memory_budget,
        checkpoint_activations=recipe.train.checkpoint_activations,
    )
    return micro_batches_of_run(sizes, schedule)


def possible_world_sizes(recipe: Recipe, ds_config: Path, positions: Positions, schedule: FreezeSchedule) -> list[int]:
    """The numbers of ranks that the run can start or continue on.

    They divide the lanes, and what recipe and ds_config fix of micro-batch, accumulation and memory goes with them."""

    def is_planned(world_size: int) -> bool:
        try:
            plan_micro_batches(recipe, plan_engine(recipe, ds_config, world_size), world_size, schedule)
        except BadInput:
            return False
        return True

    most = positions.lanes if isinstance(positions, LaneOrder) else positions.global_batch
    return [size for size in range(1, most + 1) if most % size == 0 and is_planned(size)]


def read_ds_config(path: Path) -> dict:
    """DeepSpeed's JSON. Raises `BadInput` naming the file and the line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise BadInput(f"--ds_config {path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except ValueError as error:  # a key given twice, or bytes that are no text
        raise BadInput(f"--ds_config {path}: {error}; mend the file") from None
    except OSError as error:
        raise BadInput(f"--ds_config {path}: cannot be read ({error.strerror}): give one of ds_configs/") from None
    if not isinstance(content, dict):
        raise BadInput(f"--ds_config {path}: must be a JSON object")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key come twice and takes the last; of two that contradict each other neither is safe to take."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")
    return dict(pairs)
