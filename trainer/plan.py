"""Everything about a run that is known, and can be refused, before a process group or an engine exists."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.micro_batches import MicroBatches
from trainer.data.order import LaneOrder, Positions
from trainer.data.shard_index import ShardIndex
from trainer.data.source import DataSource, open_source, positions_of
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput
from trainer.evaluation.splits import open_held_out
from trainer.freezing.rebatch import micro_batch_by_frozen_units, micro_batches_of_run
from trainer.freezing.schedule import FreezeSchedule
from trainer.ranks import Ranks
from trainer.recipe import AnyRecipe, Recipe

if TYPE_CHECKING:  # a run is planned before torch is imported
    from trainer.model.localmim import LocalMIM


@dataclass(frozen=True, kw_only=True)
class AnyPlan(ABC):
    """What the training loop knows of a run, whatever it trains."""

    recipe: AnyRecipe
    ds: ResolvedDsConfig
    index: DataSource
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

    @abstractmethod
    def new_model(self) -> Any:
        """A `trainer.engine.groups.FreezableModel`, with weights as torch's random generator makes them."""


@dataclass(frozen=True, kw_only=True)
class RunPlan(AnyPlan):
    """A pre-training."""

    recipe: Recipe
    schedule: FreezeSchedule
    held_out: ShardIndex | None
    """Shards for the evaluations on the way, where the recipe asks for them."""

    def stage_weights_at(self, step: int) -> list[float] | None:
        """Weight of each stage's loss at a step, 0 being the first; None where all are 1 throughout."""
        return self.recipe.model.stage_weights_at(step / max(1, self.total_steps - 1))

    def new_model(self) -> "LocalMIM":
        from trainer.model.localmim import LocalMIM

        return LocalMIM(self.recipe.model, checkpoint_activations=self.recipe.train.checkpoint_activations)


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
    held_out = None
    if recipe.evaluation.interval(positions.steps_per_epoch):
        held_out = open_held_out(recipe.evaluation, index, recipe.data, ranks.rank)
    return RunPlan(
        recipe=recipe,
        ds=ds,
        index=index,
        schedule=schedule,
        micro_batches=micro_batches,
        steps_per_epoch=positions.steps_per_epoch,
        total_steps=schedule.total_steps,
        output=output,
        ranks=ranks,
        held_out=held_out,
    )


def plan_engine(recipe: Recipe, ds_config: Path, world_size: int) -> ResolvedDsConfig:
    """The ds_config, complete and in agreement with the recipe. Raises `BadInput`."""
    ds = resolve_for(recipe, ds_config, world_size)
    if recipe.train.compile and ds.zero_stage == 3:
        raise BadInput(
            f"{ds_config}: zero_optimization.stage is 3 but the recipe's train.compile is true: ZeRO-3 gathers weights "
            "in the middle of a block, and a compiled block has no middle; use stage 1 or 2, or set train.compile=false"
        )
    return ds


def resolve_for(recipe: AnyRecipe, ds_config: Path, world_size: int) -> ResolvedDsConfig:
    """The ds_config with what any recipe says of batches, precision and clipping. Raises `BadInput`."""
    train = recipe.train
    return resolve_ds_config(
        read_ds_config(ds_config),
        source=str(ds_config),
        world_size=world_size,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        precision=train.precision,
        clip_grad=recipe.optimizer.clip_grad,
    )


def plan_schedule(recipe: Recipe, steps_per_epoch: int) -> FreezeSchedule:
    """Learning rates and freezes of the whole run. Raises `BadInput`, also for steps that it will not have."""
    try:
        schedule = FreezeSchedule(
            recipe.freezing,
            depth=recipe.model.num_blocks,
            total_steps=recipe.total_steps(steps_per_epoch),
            warmup_steps=round(recipe.optimizer.warmup_epochs * steps_per_epoch),
            lr=recipe.learning_rate,
            min_lr=recipe.optimizer.min_lr,
        )
    except ValueError as error:
        raise BadInput(f"recipe: {error}") from None
    require_steps("train.profile", recipe.train.profile, schedule.total_steps)
    require_steps("tracking.pictures_at", recipe.tracking.pictures_at, schedule.total_steps)
    return schedule


def require_steps(key: str, steps: list[int], total_steps: int) -> None:
    """Raises `BadInput` for steps, named under `key` of the recipe, that the run will not have."""
    if steps and max(steps) > total_steps:
        raise BadInput(f"{key}: step {max(steps)} lies beyond the run: name steps from 1 to {total_steps}")


def plan_micro_batches(recipe: Recipe, ds: ResolvedDsConfig, world_size: int, schedule: FreezeSchedule) -> MicroBatches:
    """Micro-batches of the whole run; they change at freezes with `freezing.rebatch` only. Raises `BadInput`."""
    if not recipe.freezing.rebatch:
        return MicroBatches.always(ds.micro_batch)
    sizes = micro_batch_by_frozen_units(
        recipe.model,
        ds,
        world_size,
        recipe.freezing.memory_budget,
        initial_units=recipe.freezing.initial_units,
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
