"""Does freezing pay, at equal cost? Pre-trains, evaluates, and writes the tables and the picture of docs/study.md.

    python -m studies.freezing [--quick] [--seeds 3] [--at-once 2]

Fetches Fashion-MNIST and photographs, makes shards of them, and runs what is not there yet under runs/studies, hours on
two cores. Stop it whenever you like: the same command goes on. --quick takes the same road in minutes, with numbers
that mean nothing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

from launch.command import run_command
from studies.command import QUICK_IMAGES, parse_arguments
from studies.contrast import main_sections, others_section
from studies.cost import unit
from studies.finetuning import finetune_missing
from studies.image_sets import IMAGE_SETS, ImageSet
from studies.judging import judge_missing
from studies.page import command_line, dated, put_tables
from studies.picture import draw
from studies.pretraining import pretrainings
from studies.results import Point, read_points
from studies.runner import run_missing
from trainer.errors import BadInput

MODULE = "studies.freezing"


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(__doc__, words)
    quick, output = arguments.quick, arguments.output
    found = {image_set: _points(image_set, arguments) for image_set in IMAGE_SETS}
    found = {image_set: points for image_set, points in found.items() if points}
    if not found:
        raise BadInput(f"{arguments.work} holds no run that has ended: leave out --skip-training")
    cost = unit(quick=quick)
    draw(found, cost, output / "study.png")
    command = command_line(MODULE, sys.argv[1:] if words is None else words)
    put_tables(output / "study.md", tables(found, cost, command, quick=quick), MODULE)
    print(f"tables in {output / 'study.md'}, picture in {output / 'study.png'}")
    return 0


def tables(found: Mapping[ImageSet, Sequence[Point]], unit_cost: int, command: str, *, quick: bool = False) -> str:
    """Markdown of all that is there, dated."""
    runs = sum(len({point.trial for point in of_set}) for of_set in found.values())
    parts = [dated(command, runs, sum(map(len, found.values())))]
    for image_set, of_set in found.items():
        parts.append(f"### {image_set.title}\n")
        for budget in image_set.budgets(quick=quick):
            sections = main_sections(of_set, budget, unit_cost)
            if budget == image_set.budgets(quick=quick)[0] and not image_set.main_only:
                sections.append(others_section(of_set, budget, unit_cost))
            parts += [section.markdown().replace("## ", "#### ", 1) for section in sections if section.rows]
    return "\n".join(parts)


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
