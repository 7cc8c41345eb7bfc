"""`python -m benchmarks.step [--quick] [--output docs/benchmarks-step.md]`

A training step of LocalMIM ViT-B (forward, backward, AdamW) on the CPU: against the same step written down plainly,
against the rate of a large matrix product on this machine, and what lies between. Prints markdown tables with a
description of the machine. Takes some minutes, on two cores that have nothing else to do, and the memory of three ViT-B
with their optimizers; --quick takes a tiny model and shows in seconds that everything works."""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.step_tables import hog_section, left_section, step_section
from trainer.errors import BadInput
from trainer.files import write_text
from trainer.model.config import ModelConfig


@dataclass(frozen=True)
class Effort:
    """What is measured: the model, (threads, micro-batch) pairs, and how often."""

    config: ModelConfig
    settings: tuple[tuple[int, int], ...]
    rounds: int
    hog_images: int


FULL = Effort(ModelConfig(), settings=((1, 16), (2, 16), (2, 32)), rounds=5, hog_images=16)
QUICK = Effort(ModelConfig(size="tiny", image_size=64), settings=((1, 2),), rounds=2, hog_images=2)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for input that cannot be used (one line says what and how to mend it)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds")
    parser.add_argument("--output", type=Path, help="write the page here as well")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output and not arguments.output.parent.is_dir():
            raise BadInput(f"--output {arguments.output}: there is no folder {arguments.output.parent}; make it")
    except BadInput as error:
        print(f"benchmarks.step: {error}", file=sys.stderr)
        return 2
    page = run(QUICK if arguments.quick else FULL)
    if arguments.output:
        write_text(arguments.output, page)
    return 0


def run(effort: Effort) -> str:
    """Measures and prints section after section; returns the whole page."""
    parts = [f"# Benchmarks of a training step\n\n`python -m {_command(effort)}`\n\n{describe_machine()}\n"]
    print(parts[0], flush=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        measured, section = step_section(effort.config, effort.settings, effort.rounds, folder)
        for made in (
            lambda: section,
            lambda: hog_section(effort.config, effort.hog_images, effort.rounds, measured),
            lambda: left_section(effort.config, measured),
        ):
            parts.append(made().markdown())
            print(parts[-1], flush=True)
    return "\n".join(parts)


def _command(effort: Effort) -> str:
    return "benchmarks.step --quick" if effort is QUICK else "benchmarks.step"


if __name__ == "__main__":
    sys.exit(main())
