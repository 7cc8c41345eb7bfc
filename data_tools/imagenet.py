"""Converts ImageNet (ILSVRC2012) as it is downloaded into WebDataset shards, without unpacking it.

    python -m data_tools imagenet --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar \\
        --devkit ILSVRC2012_devkit_t12.tar.gz --output shards --shards 1024 --val-shards 64

Either set can be converted alone. The labels of the validation set are in the devkit. A label is the rank of the
class's wnid, as everywhere but in the devkit; the index lists the wnids.

Image bytes are stored as they are; only files that are no JPEG, and JPEGs of four components, are converted to RGB
JPEGs. Run again after an interruption, the command goes on where it stopped."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from data_tools.arguments import add_conversion_arguments, conversion_options
from data_tools.conversion import convert, summary
from data_tools.devkit import Devkit, read_devkit
from data_tools.imagenet_archives import scan_train, scan_validation
from data_tools.samples import SourceSplit
from trainer.errors import BadInput

SUMMARY = "convert ImageNet's official tars into shards, without unpacking them"

_NUM_CLASSES = 1000
_NUM_TRAIN = 1_281_167
_NUM_VALIDATION = 50_000
_MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
_MD5_CHUNK = 4 * 2**20
# Task 3 is about 120 breeds of dogs and wild dogs, whose wnids lie within these.
_TASK_3_CLASSES = 120
_FIRST_DOG, _LAST_DOG = "n02085620", "n02116738"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, metavar="TAR", help="ILSVRC2012_img_train.tar")
    parser.add_argument("--val", type=Path, metavar="TAR", help="ILSVRC2012_img_val.tar; needs --devkit")
    parser.add_argument("--devkit", type=Path, metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz")
    parser.add_argument("--check-md5", action="store_true", help="compare the files' md5 with the official ones first")
    add_conversion_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if a file is not the one that its option asks for, or whatever `convert` has against it."""
    if arguments.train is None and arguments.val is None:
        raise BadInput("nothing to convert: give --train, or --val with --devkit, or all three")
    if arguments.val is not None and arguments.devkit is None:
        raise BadInput("--val needs --devkit ILSVRC2012_devkit_t12.tar.gz, which holds the labels")
    if arguments.shards is not None and arguments.train is None:
        raise BadInput("--shards counts training shards: without --train, give --val-shards")
    if arguments.val_shards is not None and arguments.val is None:
        raise BadInput("--val-shards counts validation shards: without --val, give --shards")
    options = conversion_options(arguments)
    splits = _splits(arguments)
    if arguments.check_md5:
        _check_md5s(arguments)
    for split, index in zip(splits, convert(splits, arguments.output, options), strict=True):
        print(summary(split, index, arguments.short_side))


def _splits(arguments: argparse.Namespace) -> list[SourceSplit]:
    devkit = None if arguments.devkit is None else read_devkit(arguments.devkit)
    if devkit is not None:
        _refuse_other_classes(devkit.wnids, f"--devkit {arguments.devkit}")
    splits = []
    if arguments.train is not None:
        images, classes = scan_train(arguments.train)
        _refuse_other_classes(classes, f"--train {arguments.train}")
        if devkit is not None:
            _refuse_unlike_classes(classes, devkit)
        _warn_of_numbers("train", len(images), _NUM_TRAIN, len(classes))
        splits.append(SourceSplit("train", images, classes, arguments.shards))
    if arguments.val is not None:
        assert devkit is not None
        images = scan_validation(arguments.val, devkit)
        _warn_of_numbers("validation", len(images), _NUM_VALIDATION, len(devkit.wnids))
        splits.append(SourceSplit("validation", images, devkit.wnids, arguments.val_shards))
    return splits


def _refuse_other_classes(wnids: Sequence[str], what: str) -> None:
    """Raises BadInput if these are the classes of task 3, or as many as ILSVRC2012's but others."""
    if len(wnids) == _TASK_3_CLASSES and all(_FIRST_DOG <= wnid <= _LAST_DOG for wnid in wnids):
        raise BadInput(f"{what} is task 3's: {len(wnids)} classes, all of them dogs; give the one of tasks 1 and 2")
    official = _official_wnids()
    if official is not None and len(wnids) == len(official) and list(wnids) != official:
        other = next(wnid for wnid in wnids if wnid not in official)
        raise BadInput(f"{what} holds {len(wnids)} classes but not ILSVRC2012's: '{other}' is none of them")


def _official_wnids() -> list[str] | None:
    """ILSVRC2012's sorted wnids, from a file in timm, which is not imported for it: that would import torch."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    return file.read_text(encoding="ascii").split() if file.is_file() else None


def _refuse_unlike_classes(classes: Sequence[str], devkit: Devkit) -> None:
    unlike = sorted(set(classes) ^ set(devkit.wnids))
    if unlike:
        where = "training set" if unlike[0] in classes else "devkit"
        raise BadInput(
            f"--devkit {devkit.path} and --train do not belong together: they differ in {len(unlike)} classes, "
            f"'{unlike[0]}' is in the {where} only"
        )


def _warn_of_numbers(split: str, num_images: int, expected: int, num_classes: int) -> None:
    if (num_images, num_classes) != (expected, _NUM_CLASSES):
        print(
            f"warning: {num_images} {split} images of {num_classes} classes, where ILSVRC2012 has {expected} of "
            f"{_NUM_CLASSES}: right for a part of it only",
            file=sys.stderr,
        )


def _check_md5s(arguments: argparse.Namespace) -> None:
    given = (("--train", arguments.train), ("--val", arguments.val), ("--devkit", arguments.devkit))
    for (option, path), (name, expected) in zip(given, _MD5.items(), strict=True):
        if path is not None and (found := _md5(path)) != expected:
            raise BadInput(
                f"{option} {path} has the md5 {found} where {name} has {expected}: it is damaged or another file; "
                "download it again"
            )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            open(path, "rb") as file,
            tqdm(total=path.stat().st_size, desc=f"md5 of {path.name}", unit="B", unit_scale=True) as progress,
        ):
            while chunk := file.read(_MD5_CHUNK):
                digest.update(chunk)
                progress.update(len(chunk))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
