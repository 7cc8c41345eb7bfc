"""`python -m benchmarks.step [--quick] [--output docs/benchmarks-step.md]`

A training step of LocalMIM ViT-B (forward, backward, AdamW) on the CPU: against the same step written down plainly,
against the rate of a large matrix product on this machine, and what lies between. Prints markdown tables with a
description of the machine. Takes some minutes, on two cores that have nothing else to do, and the memory of four ViT-B
with their optimizers; --quick takes a tiny model and shows in seconds that everything works."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.pages import command_parser, run_command
from benchmarks.step_tables import hog_section, left_section, step_section
from benchmarks.tables import Section
from trainer.model.config import ModelConfig


@dataclass(frozen=True)
class Effort:
    """What is measured: the model, (threads, micro-batch) pairs, and how often."""

    config: ModelConfig
    settings: tuple[tuple[int, int], ...]
    rounds: int
    hog_images: int


FULL = Effort(ModelConfig(), settings=((1, 16), (2, 16)), rounds=4, hog_images=16)
QUICK = Effort(ModelConfig(size="tiny", image_size=64), settings=((1, 2),), rounds=2, hog_images=2)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("step", __doc__, quick="a tiny model, two rounds")
    title = "Benchmarks of a training step"
    return run_command(parser, argv, title, lambda arguments: sections(QUICK if arguments.quick else FULL))


def sections(effort: Effort) -> Iterator[Section]:
    """Each as soon as it is measured."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        measured, section = step_section(effort.config, effort.settings, effort.rounds, folder)
        yield section
        yield hog_section(effort.config, effort.hog_images, effort.rounds, measured)
        yield left_section(effort.config, measured)


if __name__ == "__main__":
    sys.exit(main())
