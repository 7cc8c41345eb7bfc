"""Arguments that several commands share, and their types."""

import argparse
import os
import re
import sys
from pathlib import Path

from data_tools.conversion import ConversionOptions
from data_tools.image_check import CheckOptions


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def split_name(text: str) -> str:
    """A name that files can start with."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, _ and -")
    return text


def picture_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, in pixels."""
    width, cross, height = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT, as in 500x375")
    return positive(width), positive(height)


def add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    """What `conversion_options` reads, and --output, --shards and --val-shards besides."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards and their index")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--shards", type=positive, metavar="N", help="number of training shards (default: shards of about 128 MiB)"
    )
    size.add_argument("--shard-size", type=positive, metavar="N", help="samples in a shard, at most")
    parser.add_argument(
        "--val-shards", type=positive, metavar="N", help="number of validation shards, where both splits are converted"
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all CPUs)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle over the whole data set (default: 0)")
    parser.add_argument("--decode", action="store_true", help="decode every image beforehand, not only read its header")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out files that are no usable images; the index names them"
    )
    parser.add_argument(
        "--short-side",
        type=positive,
        metavar="PIXELS",
        help="resize images whose shorter side is longer than this, as in 256. Shards get smaller and decoding faster, "
        "but the stored bytes are no longer the original ones (Lanczos, JPEG quality 95), and small random crops are "
        "magnified from fewer pixels than the original had",
    )


def conversion_options(arguments: argparse.Namespace) -> ConversionOptions:
    """The options from a command line with `add_conversion_arguments`. Says what --short-side means if it is given."""
    if arguments.short_side is not None:
        print(
            f"--short-side {arguments.short_side}: larger images are stored resized, not in their original bytes; "
            "small random crops will be magnified from fewer pixels",
            file=sys.stderr,
        )
    check = CheckOptions(arguments.decode, arguments.short_side)
    return ConversionOptions(arguments.shard_size, arguments.workers, arguments.seed, check, arguments.skip_bad)
