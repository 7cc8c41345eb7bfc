"""`python -m benchmarks.data [--quick] [--corpus DIR] [--output docs/benchmarks-data.md]`

The data path beside what others use, in one run: loading, reading, converting, resuming, mixing. Prints markdown tables
with a description of the machine; with --output it writes them as a page and draws the mixing beside it. Takes four to
six minutes, on two cores that have nothing else to do; --quick shows in one that everything works, with figures that
mean little."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import command_parser, run_command
from benchmarks.tables import Section


@dataclass(frozen=True)
class Effort:
    """How much is measured. A full round of one loader lasts about half a second."""

    images: int
    batch: int
    batches: int
    rounds: int
    mixing_samples: int
    mixing_shards: int
    mixing_batch: int


FULL = Effort(512, 64, 3, 9, 1_281_167, 1024, 4096)
QUICK = Effort(48, 8, 1, 2, 60_000, 64, 512)


def main(argv: list[str] | None = None) -> int:
    output = "write the page here, and mixing.png beside it"
    parser = command_parser("data", __doc__, quick="tiny data, two rounds", output=output)
    parser.add_argument("--corpus", type=Path, help="folder of class folders of images (default: photographs, fetched)")
    return run_command(parser, argv, "Benchmarks of the data path", _sections)


def _sections(arguments: argparse.Namespace) -> Iterator[Section]:
    """Each as soon as it is measured."""
    # Not at the top: the loaders' worker processes import this module again, and would wait seconds for these.
    import torch

    from benchmarks.conversion import conversion_section
    from benchmarks.corpus import make_corpus
    from benchmarks.loading import loader_section
    from benchmarks.machine import require_linux
    from benchmarks.mixing import mixing_section
    from benchmarks.reading import reading_section
    from benchmarks.resume import resume_section
    from benchmarks.stages import stage_section

    require_linux()
    torch.set_num_threads(1)
    effort = QUICK if arguments.quick else FULL
    picture = arguments.output.with_name("mixing.png") if arguments.output else None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        corpus = make_corpus(arguments.corpus, effort.images, work)
        yield loader_section(corpus, batch=effort.batch, batches=effort.batches, rounds=effort.rounds)
        yield stage_section(corpus, samples=effort.batch, rounds=effort.rounds)
        yield reading_section(corpus, rounds=effort.rounds)
        yield conversion_section(corpus, work, rounds=effort.rounds)
        yield resume_section(corpus)
        yield mixing_section(effort.mixing_samples, effort.mixing_shards, effort.mixing_batch, picture)


if __name__ == "__main__":
    sys.exit(main())
