"""`python -m benchmarks.freezing [--quick] [--only compute,loader,run,memory] [--corpus DIR] [--output PAGE]`

What freezing saves, beside what its FLOPs promise: the compute time of a step at every frozen count, added up over the
schedule, and the same as published, with the class token trained to the end; the wall time with the loader on; a whole
short run; and what a step moves and holds. ViT-B, and ViT-L's compute time. Prints markdown tables, with --output
writes them as a page. Takes about 50 minutes on two cores that have nothing else to do and 12 GB of memory; --quick
shows in one or two, on a tiny model, that everything works, with figures that mean nothing."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.corpus import make_corpus
from benchmarks.freezing_cases import TINY, VIT_BASE, VIT_LARGE, Case
from benchmarks.frozen_compute import count_section, measure_costs, part_section, saving_section
from benchmarks.frozen_loading import loading_section
from benchmarks.frozen_memory import memory_section
from benchmarks.frozen_run import run_section
from benchmarks.gemm import why_no_bf16
from benchmarks.machine import require_linux
from benchmarks.pages import chosen_parts, command_parser, run_command
from benchmarks.tables import Section
from trainer.engine.ds_config import Precision

PARTS = ("compute", "loader", "run", "memory")
_ENDS = (0, 12)
"""Unfrozen, and with all units frozen that ever freeze, when the loader is pressed hardest."""


@dataclass(frozen=True)
class Effort:
    """What is measured. The first of `compute` is `run`'s case too; the run takes `run_images` in one epoch."""

    compute: tuple[Case, ...]
    rounds: int
    loader: Case
    run: Case
    run_images: int
    memory: Case


FULL = Effort(
    compute=(VIT_BASE, VIT_LARGE),
    rounds=3,
    loader=replace(VIT_BASE, micro_batch=4, counts=_ENDS),
    run=VIT_BASE,
    run_images=384,
    memory=replace(VIT_BASE, micro_batch=2),
)
QUICK = Effort(compute=(TINY,), rounds=1, loader=TINY, run=TINY, run_images=32, memory=TINY)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("freezing", __doc__, quick="a tiny model, one round")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, with commas; all: %(default)s")
    parser.add_argument("--corpus", type=Path, help="folder of class folders of images (default: photographs, fetched)")
    return run_command(parser, argv, "What freezing saves", _chosen_sections)


def _chosen_sections(arguments: argparse.Namespace) -> Iterator[Section]:
    require_linux()
    effort = QUICK if arguments.quick else FULL
    return _sections(effort, chosen_parts(arguments.only, PARTS), arguments.corpus)


def _sections(effort: Effort, parts: list[str], source: Path | None) -> Iterator[Section]:
    """Each as soon as it is measured."""
    step_costs = None
    if "compute" in parts:
        obstacle = why_no_bf16()
        runs: list[tuple[Case, Precision]] = [(case, "fp32") for case in effort.compute]
        runs += [] if obstacle else [(effort.compute[0], "bf16")]
        measured = [measure_costs(case, precision, effort.rounds) for case, precision in runs]
        for costs in measured:
            yield count_section(costs)
            yield part_section(costs)
        yield saving_section(measured, [obstacle] if obstacle else [])
        step_costs = measured[0]["here"].by_count()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        if "loader" in parts or "run" in parts:
            shards = make_corpus(source, effort.run_images, work).shards
        if "loader" in parts:
            yield loading_section(effort.loader, shards)
        if "run" in parts:
            yield run_section(effort.run, shards, effort.run_images // effort.run.micro_batch, work, step_costs)
    if "memory" in parts:
        yield memory_section(effort.memory)


if __name__ == "__main__":
    sys.exit(main())
