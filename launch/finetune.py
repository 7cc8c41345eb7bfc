r"""Fine-tune a pre-trained ViT as a classifier on a DeepSpeed ZeRO engine, and measure its accuracy as it goes.

    deepspeed launch/finetune.py --ds_config ds_configs/zero1_bf16.json --recipe finetune_base --init RUN_OR_FILE \
        --data SHARDS --output RUN

On a laptop or a CPU box, with two ranks and a tiny model (what `--recipe demo` has pre-trained):

    deepspeed --num_gpus 2 launch/finetune.py --ds_config ds_configs/zero2_cpu.json --recipe finetune_demo \
        --init PRETRAINED_RUN --data SHARDS --output RUN

Continue a run, on any number of ranks: the same command (`--resume auto` is the default).
Exit codes: 0 done, 2 bad input, 75 stopped after saving (a signal, train.stop_after, a launcher that is
gone), other = crash.
"""

import argparse
import os

from launch.command import run_command
from launch.run_arguments import RECIPES, parse_run, run_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, finetuning=True)
    parser.add_argument(
        "--init", help="pre-trained weights: a run, a step_… folder of its checkpoints, or a file (finetune.init)"
    )
    parser.add_argument(
        "--validation", help="held-out shards; default: the val.json beside the training's (validation.path)"
    )
    return parse_run(parser, arguments, data="data.path", init="finetune.init", validation="validation.path")


def main() -> int:
    arguments = parse_arguments()
    from trainer.finetuning.recipe import FinetuneRecipe
    from trainer.recipe import describe_recipe, dump_recipe, load_kind

    if arguments.help_recipe:
        print(describe_recipe(FinetuneRecipe))
        return 0
    from trainer.finetuning.plan import plan_finetune
    from trainer.ranks import resolve_ranks

    ranks = resolve_ranks(os.environ)
    recipe = load_kind(FinetuneRecipe, arguments.recipe, arguments.overrides, RECIPES)
    plan = plan_finetune(recipe, arguments.ds_config, arguments.output, ranks)
    if ranks.rank == 0:
        print(dump_recipe(recipe), flush=True)
    from trainer.finetuning.training import finetune  # the slow import comes after all that can be refused without it

    return finetune(plan, arguments.resume)


if __name__ == "__main__":
    run_command(main)
