"""The arguments that every command has that trains."""

import argparse
import json
from pathlib import Path

from launch.command import ArgumentParser

RECIPES = Path(__file__).parent / "recipes"


def run_parser(description: str | None, *, finetuning: bool) -> ArgumentParser:
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ds_config", type=Path, help="DeepSpeed JSON; 'auto' values are filled from the recipe")
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    shipped = ", ".join(name for name in names if name.startswith("finetune_") == finetuning)
    parser.add_argument("--recipe", help=f"a file, or one of the shipped: {shipped}")
    parser.add_argument(
        "--data", help="folder of shards with an index, or the index file; a path, a URL or a pipe: (recipe: data.path)"
    )
    parser.add_argument("--output", type=Path, help="the run directory; made if it is not there")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument("--help-recipe", action="store_true", help="print every recipe key with its meaning, and leave")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    return parser


def parse_run(parser: ArgumentParser, arguments: list[str] | None, **keys: str) -> argparse.Namespace:
    """`keys`: option → the recipe's key that it stands for. What was given of them joins the overrides, as the last.

    Raises `BadInput` where an argument is missing."""
    parsed = parser.parse_intermixed_args(arguments)
    if not parsed.help_recipe:
        missing = [f"--{name}" for name in ("ds_config", "recipe", "output") if getattr(parsed, name) is None]
        if missing:
            parser.error(f"missing: {', '.join(missing)}")
    given = {key: getattr(parsed, option) for option, key in keys.items() if getattr(parsed, option)}
    parsed.overrides += [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return parsed
