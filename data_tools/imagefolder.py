"""Converts a folder of images into WebDataset shards.

INPUT holds a folder for each class, with that class's images somewhere below it; labels count the class folders in the
order of their names. Without such folders all images directly in INPUT get the label 0. If INPUT holds the folders
train/ and val/ (or valid/, validation/), each of them such a folder, both are converted, with the classes of train/.
Files are known by their content: every file counts as an image, whatever its name, but for hidden ones.

ImageNet's validation set as unpacked, without class folders, needs --devkit for its labels.

Image bytes are stored as they are; only files that are no JPEG, and JPEGs of four components, are converted to RGB
JPEGs. Run again after an interruption, the command goes on where it stopped."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from data_tools.arguments import add_conversion_arguments, conversion_options, split_name
from data_tools.conversion import convert, summary
from data_tools.devkit import Devkit, read_devkit
from data_tools.imagenet_archives import VALIDATION_IMAGE
from data_tools.samples import SourceImage, SourceSplit
from trainer.data.tar_members import shown
from trainer.errors import BadInput

SUMMARY = "convert a folder of class folders of images into shards"

_VALIDATION_FOLDERS = ("val", "valid", "validation")
_SPLIT_FOLDERS = {"train", *_VALIDATION_FOLDERS, "test"}
_QUIET_SECONDS = 3  # a bar for the listing of files appears only where it takes longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="folder of class folders, of images, or of splits")
    parser.add_argument("--split", type=split_name, help="name of the split and of its shards (default: train)")
    parser.add_argument("--devkit", type=Path, metavar="FILE", help="labels of ImageNet's validation set, if unsorted")
    add_conversion_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if INPUT holds no images or unusable ones, or whatever `convert` has against OUTPUT."""
    options = conversion_options(arguments)
    try:
        _refuse_output_within(arguments)
        splits = _splits(arguments)
    except OSError as error:
        raise BadInput(f"--input: {shown(str(error.filename))} cannot be read: {error.strerror}") from error
    for split, index in zip(splits, convert(splits, arguments.output, options), strict=True):
        print(summary(split, index, arguments.short_side))


def scan_folder(folder: Path) -> tuple[list[SourceImage], list[str]]:
    """The files of a folder sorted by name, and its class names (none if it has no class folders).

    Raises BadInput if it is not a folder or holds no files."""
    files, classes = _class_folders(folder)
    if not classes:
        print(f"{folder} has no class folders: all images get the label 0", file=sys.stderr)
        return [_source_image(folder, file, 0, "") for file in files], []
    if files:
        print(f"{folder}: {len(files)} files beside the class folders are left out", file=sys.stderr)
    return _images_of_classes(folder, classes, classes), classes


def _validation_beside_train(folder: Path) -> list[str]:
    """The names of the folders of validation images, if `folder` holds splits."""
    return [name for name in _VALIDATION_FOLDERS if (folder / "train").is_dir() and (folder / name).is_dir()]


def _refuse_output_within(arguments: argparse.Namespace) -> None:
    """A run that goes on would take its own shards for a class. What is hidden, or lies beside the splits, is not
    looked at."""
    source: Path = arguments.input
    validation = _validation_beside_train(source)
    output = arguments.output.resolve()
    for folder in [source / name for name in ("train", *validation)] if validation else [source]:
        resolved = folder.resolve()
        if output.is_relative_to(resolved) and not any(p.startswith(".") for p in output.relative_to(resolved).parts):
            raise BadInput(
                f"--output {arguments.output} lies within --input {source}, where its shards would count as images: "
                "choose a folder elsewhere"
            )


def _splits(arguments: argparse.Namespace) -> list[SourceSplit]:
    folder: Path = arguments.input
    if validation := _validation_beside_train(folder):
        return _both_splits(arguments, validation)
    if arguments.val_shards is not None:
        raise BadInput(f"--val-shards is for an --input with train/ and val/, which {folder} is not: give --shards")
    files, classes = _class_folders(folder)
    if classes in (["train"], *([name] for name in _VALIDATION_FOLDERS)):
        raise BadInput(f"--input {folder} holds a single folder, '{classes[0]}': is it --input {folder / classes[0]}?")
    if len(splits := [name for name in classes if name.lower() in _SPLIT_FOLDERS]) > 1:
        raise BadInput(
            f"--input {folder} holds the splits {', '.join(splits)}, not classes: rename two to train/ and val/, or "
            f"convert each alone, as in --input {folder / splits[-1]}"
        )
    if _is_unsorted_imagenet(files, classes):
        devkit = _devkit(arguments, folder)
        name = arguments.split or "validation"
        return [SourceSplit(name, _images_by_devkit(folder, files, devkit), devkit.wnids, arguments.shards)]
    _refuse_devkit(arguments)
    images, classes = scan_folder(folder)
    return [SourceSplit(arguments.split or "train", images, classes, arguments.shards)]


def _both_splits(arguments: argparse.Namespace, validation: Sequence[str]) -> list[SourceSplit]:
    """Both splits of INPUT; the labels of both count the classes of train/."""
    folder: Path = arguments.input
    if len(validation) > 1:
        raise BadInput(
            f"--input {folder} holds both {'/ and '.join(validation)}/: remove one, or convert each folder alone"
        )
    if arguments.split is not None:
        raise BadInput(f"--input {folder} holds both splits: leave out --split, or convert each folder alone")
    others = sorted({e.name for e in _entries(folder)} - {"train", *validation})
    if others:
        print(f"{folder}: {', '.join(map(shown, others))} left out, beside train and validation", file=sys.stderr)
    images, classes = scan_folder(folder / "train")
    source = folder / validation[0]
    files, present = _class_folders(source)
    if _is_unsorted_imagenet(files, present):
        devkit = _devkit(arguments, source)
        if list(devkit.wnids) != classes:
            raise BadInput(f"the classes in {devkit.path} are not the class folders of {folder / 'train'}")
        validation_images = _images_by_devkit(source, files, devkit)
    else:
        _refuse_devkit(arguments)
        if unknown := sorted(set(present) - set(classes)):
            raise BadInput(
                f"{source} holds {len(unknown)} classes that {folder / 'train'} lacks, such as "
                f"{shown(unknown[0])}: their images have no label; remove them"
            )
        if bool(present) != bool(classes):
            raise BadInput(f"{folder / 'train'} has class folders and {source} has none: sort its images into them")
        if present:
            validation_images = _images_of_classes(source, present, classes)
        else:
            validation_images, _ = scan_folder(source)
    return [
        SourceSplit("train", images, classes, arguments.shards),
        SourceSplit("validation", validation_images, classes, arguments.val_shards),
    ]


def _is_unsorted_imagenet(files: Sequence[os.DirEntry], classes: Sequence[str]) -> bool:
    return not classes and any(VALIDATION_IMAGE.fullmatch(file.name) for file in files)


def _devkit(arguments: argparse.Namespace, folder: Path) -> Devkit:
    if arguments.devkit is None:
        raise BadInput(
            f"{folder} is ImageNet's validation set, not sorted into class folders: "
            "give --devkit ILSVRC2012_devkit_t12.tar.gz, which holds the labels"
        )
    return read_devkit(arguments.devkit)


def _refuse_devkit(arguments: argparse.Namespace) -> None:
    if arguments.devkit is not None:
        raise BadInput(
            f"--devkit labels ILSVRC2012_val_….JPEG files that are in no class folders, which {arguments.input} does "
            "not hold: leave it out"
        )


def _images_by_devkit(folder: Path, files: Sequence[os.DirEntry], devkit: Devkit) -> list[SourceImage]:
    numbers = {int(match[1]): file for file in files if (match := VALIDATION_IMAGE.fullmatch(file.name))}
    if len(numbers) < len(files):
        print(f"{folder}: {len(files) - len(numbers)} files beside the images are left out", file=sys.stderr)
    devkit.check_numbers(numbers, str(folder))
    return [_source_image(folder, file, *devkit.validation_class(number)) for number, file in numbers.items()]


def _class_folders(folder: Path) -> tuple[list[os.DirEntry], list[str]]:
    """The files directly in a folder, and the names of the folders in it, both sorted."""
    if not folder.is_dir():
        raise BadInput(f"--input {folder} is not a folder")
    entries = _entries(folder)
    classes = [entry.name for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if _is_file(entry)]
    if not classes and not files:
        raise BadInput(f"--input {folder} holds no images")
    return files, classes


def _images_of_classes(folder: Path, present: Sequence[str], classes: Sequence[str]) -> list[SourceImage]:
    """The images in the class folders `present`, labelled by the class's place in `classes`."""
    labels = {name: label for label, name in enumerate(classes)}
    images = [
        _source_image(folder, file, labels[name], name)
        for name in tqdm(present, desc=f"listing {folder}", unit="class", delay=_QUIET_SECONDS)
        for file in _files_below(folder / name, {os.path.realpath(folder)})
    ]
    if not images:
        raise BadInput(f"--input {folder} holds no images")
    return images


def _files_below(folder: Path, above: set[str]) -> Iterator[os.DirEntry]:
    """All files below a folder, links followed; `above` holds the real paths of the folders that it is in."""
    here = os.path.realpath(folder)
    if here in above:
        raise BadInput(f"{shown(str(folder))} is a link to a folder that it is in: remove it")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files_below(Path(entry.path), above | {here})
        elif _is_file(entry):
            yield entry


def _entries(folder: Path) -> list[os.DirEntry]:
    return sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda entry: entry.name)


def _is_file(entry: os.DirEntry) -> bool:
    """Whether it counts as an image: a broken link does, so that somebody hears of it; pipes and the like do not."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _source_image(root: Path, entry: os.DirEntry, label: int, class_name: str) -> SourceImage:
    status = entry.stat(follow_symlinks=entry.is_file())
    path = Path(entry.path)
    name = path.relative_to(root).as_posix()
    return SourceImage(path, 0, status.st_size, status.st_mtime_ns, name, label, class_name)
