"""Everything about a run that is known, and can be refused, before a process group or an engine exists."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.source import DataSource, open_source, positions_of
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput
from trainer.freezing.schedule import FreezeSchedule
from trainer.ranks import Ranks
from trainer.recipe import Recipe


@dataclass(frozen=True)
class RunPlan:
    recipe: Recipe
    ds: ResolvedDsConfig
    index: DataSource
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
    index = open_source(recipe.data, ranks.rank)
    positions = positions_of(
        index, recipe.data, seed=train.seed, global_batch=train.global_batch, world_size=ranks.world_size
    )
    steps_per_epoch = positions.steps_per_epoch
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
