"""What a run will need and save, before it starts and without a GPU.

    python launch/plan.py --recipe vit_base_freeze_published --ds_config ds_configs/zero2_bf16.json --world-size 8 \\
        --memory 80GB --picture plan.png

By frozen count, for each rank: bytes of parameters, gradients, masters, moments and activations, FLOPs per image, bytes
sent per step; and what the other ZeRO stages would need. Takes the recipe, the ds_config and the overrides that
launch/pretrain.py takes, and refuses what it would refuse. docs/planning.md explains the columns.
Exit codes: 0 done, 2 bad input.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from launch.command import ArgumentParser, run_command

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
        "--samples",
        type=_positive,
        default=IMAGENET_SAMPLES,
        help="how many there are, without --data; default: ImageNet-1k's",
    )
    parser.add_argument(
        "--memory", type=_bytes, help="device memory of a rank (80GB, 24GiB): say what micro-batch fits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="draw memory, FLOPs and traffic over the run, on the first N"
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
    plans = [
        plan_on_paper(recipe, arguments.ds_config, ranks, samples=arguments.samples, memory_budget=arguments.memory)
        for ranks in arguments.world_size
    ]
    if arguments.picture:
        from trainer.planning.picture import draw_plan

        draw_plan(plans[0], arguments.picture)
    if arguments.json:
        print(json.dumps([asdict(plan) for plan in plans] if len(plans) > 1 else asdict(plans[0]), indent=2))
    else:
        print(describe(plans[0]) if len(plans) == 1 else compare(plans))
    return 0


if __name__ == "__main__":
    run_command(main)
