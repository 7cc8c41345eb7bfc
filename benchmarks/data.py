"""`python -m benchmarks.data [--quick] [--corpus DIR] [--output docs/benchmarks-data.md]`

The data path beside what others use, in one run: loading, reading, converting, resuming, mixing. Prints markdown tables
with a description of the machine; with --output it writes them as a page and draws the mixing beside it. Takes four to
six minutes, on two cores that have nothing else to do; --quick shows in one that everything works, with figures that
mean little."""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import BadInput
from trainer.files import write_text


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
    """Returns the exit code: 0, or 2 for input that cannot be used (one line says what and how to mend it)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="tiny data, two rounds")
    parser.add_argument("--corpus", type=Path, help="folder of class folders of images (default: photographs, fetched)")
    parser.add_argument("--output", type=Path, help="write the page here, and mixing.png beside it")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output and not arguments.output.parent.is_dir():
            raise BadInput(f"--output {arguments.output}: there is no folder {arguments.output.parent}; make it")
        page = run(QUICK if arguments.quick else FULL, arguments.corpus, arguments.output)
    except BadInput as error:
        print(f"benchmarks.data: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        write_text(arguments.output, page)
    return 0


def run(effort: Effort, source: Path | None, output: Path | None) -> str:
    """Measures and prints section after section; returns the whole page."""
    # Not at the top: the loaders' worker processes import this module again, and would wait seconds for these.
    import torch

    from benchmarks.conversion import conversion_section
    from benchmarks.corpus import make_corpus
    from benchmarks.loading import loader_section
    from benchmarks.machine import describe_machine, require_linux
    from benchmarks.mixing import mixing_section
    from benchmarks.reading import reading_section
    from benchmarks.resume import resume_section
    from benchmarks.stages import stage_section

    require_linux()
    torch.set_num_threads(1)
    parts = [f"# Benchmarks of the data path\n\n`python -m {_command(effort)}`\n\n{describe_machine()}\n"]
    print(parts[0], flush=True)
    picture = output.with_name("mixing.png") if output else None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        corpus = make_corpus(source, effort.images, work)
        for section in (
            lambda: loader_section(corpus, batch=effort.batch, batches=effort.batches, rounds=effort.rounds),
            lambda: stage_section(corpus, samples=effort.batch, rounds=effort.rounds),
            lambda: reading_section(corpus, rounds=effort.rounds),
            lambda: conversion_section(corpus, work, rounds=effort.rounds),
            lambda: resume_section(corpus),
            lambda: mixing_section(effort.mixing_samples, effort.mixing_shards, effort.mixing_batch, picture),
        ):
            parts.append(section().markdown())
            print(parts[-1], flush=True)
    return "\n".join(parts)


def _command(effort: Effort) -> str:
    return "benchmarks.data --quick" if effort is QUICK else "benchmarks.data"


if __name__ == "__main__":
    sys.exit(main())
