"""Turn a checkpoint into a file for others.

    python launch/export.py --checkpoint RUN --format fp32 --output model.safetensors

RUN is a run directory, whose newest whole checkpoint is taken, or a step_… directory. One process, no GPU. Formats:

    fp32    every parameter, frozen ones too, in fp32 under its name in trainer.model.localmim.LocalMIM: one safetensors
            file, with the step and the recipe (JSON) among its metadata

DeepSpeed's universal checkpoint is not among them: docs/checkpoints.md says why, and how to read checkpoints yourself.
Exit codes: 0 done, 2 bad input (a damaged checkpoint, or an output that exists or cannot be written).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from launch.command import ArgumentParser, run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run directory or a step_… directory")
    parser.add_argument("--format", choices=sorted(FORMATS), required=True, help="see above")
    parser.add_argument("--output", type=Path, required=True, help="the file to write; it appears whole or not at all")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse_arguments()
    from trainer.checkpoint.find import checkpoints_at, newest_whole
    from trainer.checkpoint.manifest import DamagedCheckpoint, verify
    from trainer.errors import BadInput

    output = arguments.output
    if output.exists() and not arguments.overwrite:
        raise BadInput(f"--output {output}: exists; choose another, or add --overwrite")
    try:
        directory = newest_whole(checkpoints_at(arguments.checkpoint, "--checkpoint"), print, verify)
        size = FORMATS[arguments.format](directory, output)
    except DamagedCheckpoint as error:
        raise BadInput(f"--checkpoint: {error}; give another") from None
    print(f"{output}: {directory.name} as {arguments.format}, {size / 1e6:.1f} MB")
    return 0


def _fp32(checkpoint: Path, output: Path) -> int:
    from trainer.checkpoint.consolidated import write_consolidated
    from trainer.checkpoint.reader import Checkpoint

    return write_consolidated(Checkpoint(checkpoint), output)


FORMATS: dict[str, Callable[[Path, Path], int]] = {"fp32": _fp32}
"""--format → what writes (a whole checkpoint's directory, output), returning the bytes written."""


if __name__ == "__main__":
    run_command(main)
