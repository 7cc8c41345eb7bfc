"""Look at what a pre-trained model makes of image files.

    python launch/show.py --checkpoint RUN_OR_FILE --images a.jpg b.png --output DIR

RUN_OR_FILE is a run directory, whose newest whole checkpoint is taken, a step_… directory, a file or folder that
launch/export.py wrote, or a file with the names of LocalMIM, MAE or timm. One process, no GPU. Draws into DIR, a row
for each image, in place of what is there:

    reconstructions.png          target and prediction of every stage, frozen ones too, under a random mask; needs
                                 weights with the decoders, not of an encoder alone
    features.png                 the last block's patch features: three principal components as red, green and blue
    attention_block_12.png, …    the class token's attention to the patches, head by head

docs/seeing.md says how to read them. Exit codes: 0 done, 2 bad input.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command import ArgumentParser, run_command
from trainer.errors import BadInput
from trainer.seeing import KINDS

if TYPE_CHECKING:  # the command line is read without waiting for torch's import
    from trainer.pretrained import Pretrained

MOST_IMAGES = 16


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights: a run, a checkpoint, a file")
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="FILE", help=f"at most {MOST_IMAGES}: JPEG, PNG, …"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="made if it is not there")
    parser.add_argument("--what", type=_kinds, default=KINDS, help=f"some of {','.join(KINDS)} (default: all)")
    parser.add_argument("--mask-seed", type=_seed, default=0, metavar="N", help="another N masks other patches")
    parser.add_argument(
        "--attention-blocks",
        type=_blocks,
        metavar="N[,N…]",
        help="whose attention is drawn, 1 being the first block (default: the last)",
    )
    parsed = parser.parse_args(arguments)
    if len(parsed.images) > MOST_IMAGES:
        parser.error(f"--images: {len(parsed.images)} files; draw at most {MOST_IMAGES} at a time")
    return parsed


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not among {','.join(KINDS)}")
    return kinds


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"give a number from 0 to {2**31 - 1}, not {text!r}")
    return int(text)


def _blocks(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"give numbers of blocks from 1, as in 4,12, not {text!r}")
    return [int(number) - 1 for number in numbers]


def main() -> int:
    arguments = parse_arguments()
    import torch

    from trainer.data.evaluation import centre_crop
    from trainer.pretrained import load_pretrained
    from trainer.seeing.draw import draw_pictures
    from trainer.seeing.image_files import read_image_file

    pixels = [read_image_file(path, "--images") for path in arguments.images]  # refused before large weights are read
    pretrained = load_pretrained(arguments.checkpoint)
    images = torch.stack([centre_crop(each, pretrained.config.image_size) for each in pixels])
    kinds = _drawable(arguments.what, pretrained)
    blocks = arguments.attention_blocks
    if blocks and max(blocks) >= pretrained.config.num_blocks:
        raise BadInput(
            f"--attention-blocks {max(blocks) + 1}: {pretrained.source} has {pretrained.config.num_blocks} blocks"
        )
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for path in draw_pictures(
            pretrained,
            images,
            arguments.output,
            kinds=kinds,
            mask_seed=arguments.mask_seed,
            attention_blocks=blocks,
        ):
            print(path, flush=True)
    except OSError as error:
        raise BadInput(
            f"--output {arguments.output}: cannot be written ({error.strerror}); choose another, or mend that"
        ) from None
    return 0


def _drawable(kinds: list[str], pretrained: "Pretrained") -> list[str]:
    """Without the reconstructions that an encoder alone cannot give. Raises `BadInput` if nothing is left."""
    if pretrained.full is not None or "reconstructions" not in kinds:
        return kinds
    why = f"{pretrained.source} holds an encoder without decoders, which cannot reconstruct"
    rest = [kind for kind in kinds if kind != "reconstructions"]
    if not rest:
        raise BadInput(f"--what reconstructions: {why}; ask for features or attention")
    print(f"no reconstructions.png: {why}", flush=True)
    return rest


if __name__ == "__main__":
    run_command(main)
