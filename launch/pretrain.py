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
import json
import os
from pathlib import Path

from launch.command import ArgumentParser, run_command

RECIPES = Path(__file__).parent / "recipes"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ds_config", type=Path, help="DeepSpeed JSON; 'auto' values are filled from the recipe")
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--recipe", help=f"a file, or one of the shipped: {shipped}")
    parser.add_argument(
        "--data", help="folder of shards with an index, or the index file; a path, a URL or a pipe: (recipe: data.path)"
    )
    parser.add_argument("--output", type=Path, help="the run directory; made if it is not there")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="PATH",
        help="weights to start a new run from: a run, a step_… directory, a Hugging Face folder, .safetensors, .pth; a "
        "checkpoint that --resume finds goes before",
    )
    parser.add_argument("--help-recipe", action="store_true", help="print every recipe key with its meaning, and leave")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    if not parsed.help_recipe:
        missing = [f"--{name}" for name in ("ds_config", "recipe", "output") if getattr(parsed, name) is None]
        if missing:
            parser.error(f"missing: {', '.join(missing)}")
    return parsed


def main() -> int:
    arguments = parse_arguments()
    from trainer.recipe import describe_recipe, dump_recipe, load_recipe

    if arguments.help_recipe:
        print(describe_recipe())
        return 0
    from trainer.plan import plan_run
    from trainer.ranks import resolve_ranks

    overrides = [*arguments.overrides, *([f"data.path={json.dumps(arguments.data)}"] if arguments.data else [])]
    ranks = resolve_ranks(os.environ)
    recipe = load_recipe(arguments.recipe, overrides, RECIPES)
    plan = plan_run(recipe, arguments.ds_config, arguments.output, ranks)
    if ranks.rank == 0:
        print(dump_recipe(recipe), flush=True)
    from trainer.loop import pretrain  # the slow import of DeepSpeed comes after all that can be refused without it

    return pretrain(plan, arguments.resume, arguments.init)


if __name__ == "__main__":
    run_command(main)
