"""Does freezing pay, at equal cost? Pre-trains, evaluates, and writes the tables and the picture of docs/study.md.

    python -m studies.freezing [--quick] [--seeds 3] [--at-once 2]

Fetches Fashion-MNIST and photographs, makes shards of them, and runs what is not there yet under runs/studies, hours on
two cores. Stop it whenever you like: the same command goes on. --quick takes the same road in minutes, with numbers
that mean nothing.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages import at_least_one
from launch.command import ArgumentParser, run_command
from studies.cost import unit
from studies.finetuning import finetune_missing
from studies.image_sets import IMAGE_SETS, ImageSet
from studies.judging import judge_missing
from studies.page import put_tables, tables
from studies.picture import draw
from studies.pretraining import pretrainings
from studies.results import Point, read_points
from studies.runner import REPOSITORY, run_missing
from trainer.errors import BadInput

QUICK_IMAGES = 320
WORK = REPOSITORY / "runs/studies"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model on few images")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="of the main contrast (default: 3)")
    parser.add_argument("--at-once", type=at_least_one, default=2, help="runs side by side, a thread each (default: 2)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of shards, runs and results (runs/studies)")
    parser.add_argument("--skip-training", action="store_true", help="judge and write what is there already")
    parser.add_argument("--output", type=Path, help="folder of study.md and study.png (docs; quick: beside the runs)")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    quick = arguments.quick
    output = arguments.output or (arguments.work if quick else REPOSITORY / "docs")
    if arguments.output and not output.is_dir():
        raise BadInput(f"--output {output}: there is no such folder; make it")
    found = {image_set: _points(image_set, arguments) for image_set in IMAGE_SETS}
    found = {image_set: points for image_set, points in found.items() if points}
    if not found:
        raise BadInput(f"{arguments.work} holds no run that has ended: leave out --skip-training")
    cost = unit(quick=quick)
    command = shlex.join(["python", "-m", "studies.freezing", *(sys.argv[1:] if words is None else words)])
    draw(found, cost, output / "study.png")
    put_tables(output / "study.md", tables(found, cost, command, quick=quick))
    print(f"tables in {output / 'study.md'}, picture in {output / 'study.png'}")
    return 0


def _points(image_set: ImageSet, arguments: argparse.Namespace) -> list[Point]:
    quick, suffix = arguments.quick, "_quick" if arguments.quick else ""
    shards = image_set.make_shards(arguments.work / f"{image_set.name}{suffix}", QUICK_IMAGES if quick else None)
    folder = arguments.work / f"freezing_{image_set.name}{suffix}"
    trials = image_set.trials(arguments.seeds, quick=quick)
    runs = pretrainings(trials, shards, folder)
    if not arguments.skip_training:
        run_missing(runs, at_once=arguments.at_once)
    judge_missing(trials, runs, shards, folder)
    if not (arguments.skip_training or image_set.main_only):
        finetune_missing(trials, shards, folder, at_once=arguments.at_once)
    return read_points(folder, trials)


if __name__ == "__main__":
    run_command(main)
