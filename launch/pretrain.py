r"""Pre-train a ViT with LocalMIM on a DeepSpeed ZeRO engine, through every layer freeze.

    deepspeed launch/pretrain.py --ds_config ds_configs/zero2_bf16.json --recipe vit_base --data SHARDS --output RUN
    torchrun --nproc_per_node 8 launch/pretrain.py --ds_config … (the same)

On a laptop or a CPU box, with two ranks and a tiny model:

    deepspeed --num_gpus 2 launch/pretrain.py --ds_config ds_configs/zero2_cpu.json --recipe demo --data SHARDS \
        --output RUN

Continue a run, on any number of ranks: the same command (`--resume auto` is the default). Start a new one from weights
that are there, your own or those of LocalMIM, MAE or timm: `--init PATH` (docs/export.md).
Exit codes: 0 done, 2 bad input, 75 stopped after saving (a signal, train.stop_after, a launcher that is
gone), other = crash.
"""

import argparse
import os
from pathlib import Path

from launch.command import run_command
from launch.run_arguments import RECIPES, parse_run, run_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, finetuning=False)
    parser.add_argument(
        "--init",
        type=Path,
        metavar="PATH",
        help="weights to start a new run from: a run, a step_… directory, a Hugging Face folder, .safetensors, .pth; a "
        "checkpoint that --resume finds goes before",
    )
    return parse_run(parser, arguments, data="data.path")


def main() -> int:
    arguments = parse_arguments()
    from trainer.recipe import describe_recipe, dump_recipe, load_recipe

    if arguments.help_recipe:
        print(describe_recipe())
        return 0
    from trainer.plan import plan_run
    from trainer.ranks import resolve_ranks

    ranks = resolve_ranks(os.environ)
    recipe = load_recipe(arguments.recipe, arguments.overrides, RECIPES)
    plan = plan_run(recipe, arguments.ds_config, arguments.output, ranks)
    if ranks.rank == 0:
        print(dump_recipe(recipe), flush=True)
    from trainer.pretraining import pretrain  # the slow import comes after all that can be refused without it

    return pretrain(plan, arguments.resume, arguments.init)


if __name__ == "__main__":
    run_command(main)
