"""What the studies' commands share: their arguments."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages import at_least_one
from launch.command import ArgumentParser
from studies.runner import REPOSITORY
from trainer.errors import BadInput

WORK = REPOSITORY / "runs/studies"
QUICK_IMAGES = 320
"""Of each split, at most, with --quick."""


def parse_arguments(description: str | None, words: Sequence[str] | None = None) -> argparse.Namespace:
    """`output` is the folder of page and picture. Raises `BadInput`."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model on few images")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="how many, where there are several (default: 3)")
    parser.add_argument("--at-once", type=at_least_one, default=2, help="runs side by side, a thread each (default: 2)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of shards, runs and results (runs/studies)")
    parser.add_argument("--skip-training", action="store_true", help="judge and write what is there already")
    parser.add_argument("--output", type=Path, help="folder of page and picture (docs; quick: beside the runs)")
    arguments = parser.parse_args(words)
    if arguments.output and not arguments.output.is_dir():
        raise BadInput(f"--output {arguments.output}: there is no such folder; make it")
    arguments.output = arguments.output or (arguments.work if arguments.quick else REPOSITORY / "docs")
    return arguments
