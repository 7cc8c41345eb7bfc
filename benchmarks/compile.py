"""`python -m benchmarks.compile [--quick] [--output docs/benchmarks-compile.md]`

What `train.compile` gains and costs, and what `train.checkpoint_activations` does: blocks of ViT-B and of a tiny ViT
eager and compiled, in turn; the compiler's own time; a step of ViT-B with and without checkpointed activations, and
what it keeps for the backward pass. Prints markdown tables. Takes six to eight minutes on one core that has nothing
else to do; --quick takes tiny models and shows in a minute or two, most of them the compiler's, that everything
works."""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.checkpointed_blocks import checkpointing_section
from benchmarks.compiled_blocks import BlockCase, block_section, freezing_section
from benchmarks.pages import command_parser, run_command
from benchmarks.tables import Section
from trainer.model.config import ModelConfig

SMALL = ModelConfig(size="tiny", image_size=64)


@dataclass(frozen=True)
class Effort:
    """What is measured, and in how many rounds."""

    blocks: tuple[BlockCase, ...]
    rounds: int
    freezing: ModelConfig
    checkpointing: ModelConfig
    micro_batch: int
    frozen_counts: tuple[int, ...]


FULL = Effort(
    blocks=(BlockCase("ViT-B", 768, 12, micro_batch=16), BlockCase("tiny", 192, 3, micro_batch=16)),
    rounds=15,
    freezing=ModelConfig(size="tiny"),
    checkpointing=ModelConfig(),
    micro_batch=16,
    frozen_counts=(0, 4, 8, 12),
)
QUICK = Effort((BlockCase("tiny", 64, 2, micro_batch=2),), 2, SMALL, SMALL, 2, (0, 8))


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("compile", __doc__, quick="tiny models, two rounds")
    title = "Compiled blocks, checkpointed activations"
    return run_command(parser, argv, title, lambda arguments: sections(QUICK if arguments.quick else FULL))


def sections(effort: Effort) -> Iterator[Section]:
    """Each as soon as it is measured."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # an empty one: the first compilation is to be a cold one
        yield block_section(effort.blocks, effort.rounds)
        yield freezing_section(effort.freezing)
        rounds = max(2, effort.rounds // 5)
        yield checkpointing_section(effort.checkpointing, effort.micro_batch, effort.frozen_counts, rounds)


if __name__ == "__main__":
    sys.exit(main())
