"""What a run will need and save, before it starts and without a GPU.

    python launch/plan.py --recipe vit_base_freeze_published --ds_config ds_configs/zero2_bf16.json --world-size 8 \\
        --memory 80GB --picture plan.png

By frozen count, for each rank: bytes of parameters, gradients, masters, moments and activations, FLOPs per image, bytes
sent per step; and what the other ZeRO stages would need. Takes the recipe, the ds_config and the overrides that
launch/pretrain.py takes, and refuses what it would refuse. docs/planning.md explains the columns and the JSON.
Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command import ArgumentParser, run_command
from trainer.errors import BadInput

if TYPE_CHECKING:  # the command line is read without waiting for torch's import
    from trainer.data.order import Positions
    from trainer.planning.planner import SettledRun
    from trainer.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"
IMAGENET_SAMPLES = 1_281_167


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a file, or the name of a shipped one")
    parser.add_argument("--ds_config", type=Path, required=True, help="DeepSpeed JSON, as for training")
    parser.add_argument(
        "--world-size",
        type=_several,
        required=True,
        metavar="N[,N…]",
        help="ranks, all machines together; of several numbers, what the run needs before its first freeze is compared",
    )
    parser.add_argument("--data", help="the shards, to plan with what they hold (recipe: data.path)")
    parser.add_argument(
        "--samples", type=_positive, help="how many there are, without --data; default: ImageNet-1k's 1,281,167"
    )
    parser.add_argument(
        "--memory", type=_bytes, help="device memory of a rank (80GB, 24GiB): say what micro-batch fits"
    )
    parser.add_argument("--json", action="store_true", help='print {"plans": […]}, one for each N, instead of tables')
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PNG",
        help="draw memory, FLOPs and traffic over the run; of several N, on the first only",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    return parser.parse_intermixed_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a positive integer, not {text!r}")
    return int(text)


def _several(text: str) -> list[int]:
    return [_positive(number) for number in text.split(",")]


def _bytes(text: str) -> int:
    from trainer.byte_sizes import parse_bytes

    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"give more than no memory, not {text!r}")
    return size


def main() -> int:
    arguments = parse_arguments()
    from trainer.planning.planner import plan_on_paper
    from trainer.planning.table import compare, describe
    from trainer.recipe import load_recipe

    overrides = [*arguments.overrides, *([f"data.path={json.dumps(arguments.data)}"] if arguments.data else [])]
    recipe = load_recipe(arguments.recipe, overrides, RECIPES)
    runs = [settle(recipe, arguments.ds_config, ranks, arguments.samples) for ranks in arguments.world_size]
    plans = [plan_on_paper(run, memory_budget=arguments.memory) for run in runs]
    if arguments.picture:
        from trainer.planning.picture import draw_plan

        draw_plan(plans[0], arguments.picture)
        if len(plans) > 1:
            print(f"{arguments.picture}: drawn for {plans[0].world_size} ranks only, the first N", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"plans": [asdict(plan) for plan in plans]}, indent=2))
    else:
        print(describe(plans[0]) if len(plans) == 1 else compare(plans))
    return 0


def settle(recipe: "Recipe", ds_config: Path, world_size: int, samples: int | None) -> "SettledRun":
    """A run as training would settle it, over `samples` samples where the recipe names no data. Raises `BadInput`
    where training would."""
    from trainer.plan import plan_engine, plan_micro_batches, plan_schedule, possible_world_sizes
    from trainer.planning.planner import SettledRun

    ds = plan_engine(recipe, ds_config, world_size)
    positions, shards = _positions(recipe, world_size, samples)
    schedule = plan_schedule(recipe, positions.steps_per_epoch)
    return SettledRun(
        recipe=recipe,
        ds=ds,
        world_size=world_size,
        positions=positions,
        shards=shards,
        schedule=schedule,
        micro_batches=plan_micro_batches(recipe, ds, world_size, schedule),
        world_sizes=possible_world_sizes(recipe, ds_config, positions, schedule),
    )


def _positions(recipe: "Recipe", world_size: int, samples: int | None) -> "tuple[Positions, int | None]":
    """The order of the samples, and the number of shards where it is known."""
    import numpy as np

    from trainer.data.order import LaneOrder
    from trainer.data.shard_index import ShardIndex
    from trainer.data.source import open_source, positions_of

    seed, global_batch, data = recipe.train.seed, recipe.train.global_batch, recipe.data
    if data.path is None:
        lengths = np.array([samples or IMAGENET_SAMPLES])
        order = LaneOrder(lengths, seed=seed, global_batch=global_batch, lanes=data.lanes, window=data.window)
        order.require_ranks(world_size)
        return order, None
    if samples is not None:
        raise BadInput(f"--samples {samples}: the data, {data.path}, say how many there are; give one of the two")
    source = open_source(data, rank=0)
    shards = len(source.shard_lengths) if isinstance(source, ShardIndex) else None
    return positions_of(source, data, seed=seed, global_batch=global_batch, world_size=world_size), shards


if __name__ == "__main__":
    run_command(main)
