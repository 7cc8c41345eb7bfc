"""Everything about a run that is known, and can be refused, before a process group or an engine exists."""

import json
from dataclasses import dataclass
from pathlib import Path

from trainer.data.order import LaneOrder
from trainer.data.shard_index import ShardIndex
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput
from trainer.freezing.schedule import FreezeSchedule
from trainer.ranks import Ranks
from trainer.recipe import Recipe


@dataclass(frozen=True)
class RunPlan:
    recipe: Recipe
    ds: ResolvedDsConfig
    index: ShardIndex
    schedule: FreezeSchedule
    steps_per_epoch: int
    total_steps: int
    output: Path
    ranks: Ranks

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"


def plan_run(recipe: Recipe, ds_config: Path, output: Path, ranks: Ranks) -> RunPlan:
    """Check recipe, ds_config, data and world size against each other. Raises `BadInput`; touches no device."""
    train = recipe.train
    ds = resolve_ds_config(
        read_ds_config(ds_config),
        source=str(ds_config),
        world_size=ranks.world_size,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        precision=train.precision,
        clip_grad=recipe.optimizer.clip_grad,
    )
    if recipe.data.path is None:
        raise BadInput("no data: give --data SHARDS, or data.path in the recipe")
    index = ShardIndex.open(recipe.data.path)
    data = recipe.data
    order = LaneOrder(
        index.shard_lengths, seed=train.seed, global_batch=train.global_batch, lanes=data.lanes, window=data.window
    )
    order.require_ranks(ranks.world_size)
    steps_per_epoch = order.steps_per_epoch
    total_steps = max(1, round(train.epochs * steps_per_epoch))
    try:
        schedule = FreezeSchedule(
            recipe.freezing,
            depth=recipe.model.num_blocks,
            total_steps=total_steps,
            warmup_steps=round(recipe.optimizer.warmup_epochs * steps_per_epoch),
            lr=recipe.learning_rate,
            min_lr=recipe.optimizer.min_lr,
        )
    except ValueError as error:
        raise BadInput(f"recipe: {error}") from None
    return RunPlan(recipe, ds, index, schedule, steps_per_epoch, total_steps, output, ranks)


def read_ds_config(path: Path) -> dict:
    """DeepSpeed's JSON. Raises `BadInput` naming the file and the line."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f"--ds_config {path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--ds_config {path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise BadInput(f"--ds_config {path}: must be a JSON object")
    return content
