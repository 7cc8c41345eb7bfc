"""Does a frozen prefix pay, at equal cost, where trained weights go on with new images? Trains, goes on, evaluates, and
writes the tables and the picture of docs/study-continued.md.

    python -m studies.continued [--quick] [--seeds 3] [--at-once 2]

Runs what is not there yet under runs/studies, an hour or two on two cores. Stop it whenever you like: the same command
goes on. --quick takes the same road in minutes, with numbers that mean nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command import run_command
from studies.command import QUICK_IMAGES, parse_arguments
from studies.continuations import WAYS, Continuation, continuations, trained
from studies.continued_picture import draw
from studies.continued_results import Found, read_found, sections
from studies.continued_sets import CONTINUED_SETS, ContinuedSet
from studies.judge import Judge
from studies.page import command_line, dated, put_tables
from studies.pretraining import checkpoint, pretrainings, seconds_until
from studies.results import Judged, read_judged, write_judged
from studies.runner import Job, run_missing
from studies.trials import GLOBAL_BATCH, Trial
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput
from trainer.pretrained import load_pretrained

MODULE = "studies.continued"


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(__doc__, words)
    output = arguments.output
    found = {images: _found(images, arguments) for images in CONTINUED_SETS}
    found = {images: of_set for images, of_set in found.items() if of_set.outcomes}
    if not found:
        raise BadInput(f"{arguments.work} holds no run that has ended: leave out --skip-training")
    draw(found, output / "study-continued.png")
    command = command_line(MODULE, sys.argv[1:] if words is None else words)
    put_tables(output / "study-continued.md", tables(found, command), MODULE)
    print(f"tables in {output / 'study-continued.md'}, picture in {output / 'study-continued.png'}")
    return 0


def tables(found: dict[ContinuedSet, Found], command: str) -> str:
    """Markdown of all that is there, dated."""
    judged = sum(len(of_set.start) + len(of_set.outcomes) for of_set in found.values())
    parts = [dated(command, judged, judged)]
    for images, of_set in found.items():
        parts.append(f"### {images.title}\n")
        parts += [section.markdown().replace("## ", "#### ", 1) for section in sections(of_set)]
    return "\n".join(parts)


def _found(images: ContinuedSet, arguments: argparse.Namespace) -> Found:
    quick, suffix = arguments.quick, "_quick" if arguments.quick else ""
    limit = QUICK_IMAGES if quick else None
    work: Path = arguments.work
    old = images.make_old(work / f"{images.name}_old{suffix}", limit)
    new = images.make_new(work / f"{images.name}_new{suffix}", limit)
    folder = work / f"continued_{images.name}{suffix}"
    runs = continuations(arguments.seeds, quick=quick)
    bases = [trained(seed, quick=quick) for seed in dict.fromkeys(run.seed for run in runs)]
    of_bases, of_runs = pretrainings(bases, old, folder), jobs(runs, new, folder)
    if not arguments.skip_training:
        run_missing(of_bases, at_once=arguments.at_once)
        run_missing(of_runs, at_once=arguments.at_once)
    all_runs: list[Trial | Continuation] = [*bases, *runs]
    ended = [run for run, job in zip(all_runs, [*of_bases, *of_runs], strict=True) if job.is_done]
    judge_missing(ended, new, folder)
    return read_found(folder, runs)


def jobs(runs: Sequence[Continuation], new: Path, folder: Path) -> list[Job]:
    """A job for each run, in the same order; its run is in `folder` and has its name."""
    steps_per_epoch = ShardIndex.open(new).num_samples // GLOBAL_BATCH
    return [
        Job("pretrain.py", run.recipe(steps_per_epoch), ("--data", new, *_start(run, folder)), folder / run.name)
        for run in runs
    ]


def judge_missing(runs: Sequence[Trial | Continuation], new: Path, folder: Path) -> None:
    """Writes a result file for the last checkpoint of each of these runs, which have ended."""
    judge = None
    for run in runs:
        if run.steps not in read_judged(folder, run):
            judge = judge or Judge(ShardIndex.open(new, "train"), ShardIndex.open(new, "validation"))
            accuracy = judge.weights(load_pretrained(checkpoint(folder, run, run.steps)))
            seconds = seconds_until(folder / run.name, run.steps)
            write_judged(folder, run, {run.steps: Judged(accuracy.knn, accuracy.linear, seconds)})
            print(f"{run.name}: {accuracy}", flush=True)


def _start(run: Continuation, folder: Path) -> tuple[str | Path, ...]:
    base = trained(run.seed, quick=run.quick)
    return () if WAYS[run.way].is_new else ("--init", checkpoint(folder, base, base.steps))


if __name__ == "__main__":
    run_command(main)
