"""Converts a folder of images into WebDataset shards.

INPUT holds a folder for each class, with that class's images somewhere below it; labels count the class folders in the
order of their names. Without such folders all images directly in INPUT get the label 0. Files are known by their
content: every file counts as an image, whatever its name, but for hidden ones.

Image bytes are stored as they are; only files that are no JPEG, and JPEGs of four components, are converted to RGB
JPEGs. Run again after an interruption, the command goes on where it stopped."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from data_tools.arguments import positive
from data_tools.conversion import ConversionOptions, convert
from data_tools.samples import SourceImage
from trainer.errors import BadInput

SUMMARY = "convert a folder of class folders of images into shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="folder of class folders, or of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards and their index")
    parser.add_argument("--split", default="train", help="name of the split and of its shards (default: train)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shards", type=positive, help="number of shards (default: shards of about 128 MiB)")
    size.add_argument("--shard-size", type=positive, metavar="N", help="samples in a shard, at most")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all CPUs)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle over the whole data set (default: 0)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be decoded")


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if INPUT holds no images or unreadable ones, or if OUTPUT holds other shards."""
    images, classes = scan_folder(arguments.input)
    options = ConversionOptions(
        arguments.split,
        arguments.shards,
        arguments.shard_size,
        arguments.workers,
        arguments.seed,
        arguments.skip_bad,
    )
    index = convert(images, classes, arguments.output, options)
    left_out = len(images) - index.num_samples
    print(
        f"{index.file}: {index.num_samples} images of {len(classes) or 'no'} classes in {len(index.shards)} shards"
        + (f"; {left_out} bad files left out" if left_out else "")
    )


def scan_folder(folder: Path) -> tuple[list[SourceImage], list[str]]:
    """The files of a folder sorted by name, and its class names (none if it has no class folders).

    Raises BadInput if it is not a folder or holds no files."""
    if not folder.is_dir():
        raise BadInput(f"--input {folder} is not a folder")
    entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda entry: entry.name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if entry.is_file()]
    if not classes:
        print(f"{folder} has no class folders: all images get the label 0", file=sys.stderr)
        images = [_source_image(folder, entry, 0, "") for entry in loose]
    else:
        if loose:
            print(f"{folder}: {len(loose)} files beside the class folders are left out", file=sys.stderr)
        images = [
            _source_image(folder, entry, label, name)
            for label, name in enumerate(classes)
            for entry in _files_below(folder / name)
        ]
    if not images:
        raise BadInput(f"--input {folder} holds no images")
    return images, classes


def _files_below(folder: Path) -> Iterator[os.DirEntry]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(Path(entry.path))
        elif entry.is_file():
            yield entry


def _source_image(root: Path, entry: os.DirEntry, label: int, class_name: str) -> SourceImage:
    status = entry.stat()
    path = Path(entry.path)
    return SourceImage(path, path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, label, class_name)
