"""`python -m benchmarks.checkpoint [--ranks 2] [--quick] [--output docs/benchmarks-checkpoint.md]`

What a checkpoint costs: how long training stands still, how long writing goes on behind it, what a save that training
waits for would have cost, and how long it takes to check and load. ViT-B with its four decoders, bf16, ZeRO-1, real
ranks on this machine; the disk is that of --folder. Prints a markdown table; --quick takes a tiny model."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pages import at_least_one, command_parser, run_command
from benchmarks.saving import ROUNDS, Timings, measure
from benchmarks.tables import Section
from tests.distributed import run_on_ranks

MB = 1e6


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("checkpoint", __doc__, quick="a tiny model: shows that it works, and nothing else")
    parser.add_argument("--ranks", type=at_least_one, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="write checkpoints below this folder (default: a temporary one)")
    return run_command(parser, argv, "Checkpoints", _sections)


def _sections(arguments: argparse.Namespace) -> Iterator[Section]:
    rows = []
    for ranks in arguments.ranks:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows.append(_row(run_on_ranks(measure, ranks, folder, arguments.quick, timeout=1800)))
    yield _section(rows)


def _row(by_rank: list[Timings]) -> list[str]:
    """The slowest rank counts."""
    fields = ("first_stall", "stall", "background", "waiting", "checking", "loading")
    slowest = [max(getattr(timings, field) for timings in by_rank) for field in fields]
    return [str(len(by_rank)), f"{by_rank[0].state_bytes / MB:.0f}", *(f"{seconds:.2f}" for seconds in slowest)]


def _section(rows: list[list[str]]) -> Section:
    return Section(
        title="Saving and loading",
        method=f"Seconds on the slowest rank, medians of {ROUNDS}. *Stall*: what training waits for when it saves, the "
        "first time (when the memory for the copy is taken) and later. *Background*: from there until the checkpoint "
        "has its name. *Waiting*: the same save if training waited for all of it. *Check*: sha256 of all files, "
        "divided over the ranks. *Load*: weights into a new model, masters and moments into the engine. Reading is "
        "from the page cache.",
        header=["ranks", "MB a rank", "first stall", "stall", "background", "waiting", "check", "load"],
        rows=rows,
    )


if __name__ == "__main__":
    sys.exit(main())
