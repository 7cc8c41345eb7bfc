"""Writes the index that training needs for shards that another tool made: webdataset's writers, img2dataset, the
timm/*-wds data sets, plain `tar`.

SHARDS are uncompressed tar files on this machine: directories, files or quoted patterns such as
'shards/train-*.tar'. They stay as they are. A sample is a run of members that share a name up to its first dot: one
image (.jpg, .jpeg, .png or .webp), and its class number in .cls if it has one. Every shard is read once for its
sha256; one that training could not read is named, with what is wrong, and then no index is written."""

import argparse
import glob
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_tools.arguments import positive, split_name
from data_tools.output_folder import sole_writer
from data_tools.process_pool import process_pool
from data_tools.progress import ImageProgress
from data_tools.shard_scan import ShardScan, scan_shard
from trainer.data.shard_index import write_index
from trainer.errors import BadInput

SUMMARY = "write the index for shards that another tool made"

_SHARDS_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="directories, tar files or quoted patterns")
    parser.add_argument("--output", type=Path, help="folder for the index (default: the shards' own)")
    parser.add_argument("--split", type=split_name, default="train", help="name of the split (default: train)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line, in the order of labels")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all CPUs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an index of other shards")


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if there are no shards, if any of them cannot be read, or if the index cannot be written or would
    replace one of others."""
    paths = find_shards(arguments.shards)
    output = arguments.output or _common_folder(paths)
    names = [_name_in_index(path, output) for path in paths]
    classes, left_out = _present(output / f"{arguments.split}.json", names, arguments.overwrite)
    if arguments.classes is not None:
        classes = _read_classes(arguments.classes)
    _require_writable(output)
    # Held from here on: a second command that changes the files which splits share is refused before it reads anything.
    with sole_writer(output, "mend that and run the command again"):
        scans = scan_shards(paths, arguments.workers)
        labels = np.concatenate([scan.labels for scan in scans])
        if classes is not None and labels.max() >= len(classes):
            raise BadInput(f"the shards hold the label {labels.max()}, but there are only {len(classes)} class names")
        shards = [replace(scan.shard, path=name) for scan, name in zip(scans, names, strict=True)]
        offsets = np.concatenate([scan.ranges for scan in scans])
        index = write_index(output, arguments.split, shards, offsets, classes, left_out)
    unlabelled = int((labels < 0).sum())
    print(
        f"{index.file}: {index.num_samples} images in {len(shards)} shards, "
        + (f"{unlabelled} without a label" if unlabelled else f"labels {labels.min()} to {labels.max()}")
    )


def find_shards(arguments: Sequence[str]) -> list[Path]:
    """The tar files that directories, files and patterns speak of, each once, those of a directory or pattern sorted by
    name.

    Raises BadInput if one speaks of none, or if a directory holds tars of several names: these are splits, more often
    than not."""
    paths: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            paths += _in_directory(argument)
        elif os.path.exists(argument):
            paths.append(argument)
        else:
            if "://" in argument:
                raise BadInput(
                    f"{argument}: an index is made of shards on this machine; URLs can be read once it is there"
                )
            found = sorted(glob.glob(argument, recursive=True))
            if not found:
                raise BadInput(f"no shards match {argument}")
            paths += found
    return [Path(path) for path in dict.fromkeys(map(os.path.abspath, paths))]


def scan_shards(paths: Sequence[Path], workers: int) -> list[ShardScan]:
    """Scans shards in parallel. Raises BadInput naming all that cannot be indexed."""
    sizes = {path: _size(path) for path in paths}
    scans: dict[Path, ShardScan] = {}
    faults: dict[Path, str] = {}
    read = 0
    with (
        process_pool(min(workers, len(paths)), __name__) as pool,
        ImageProgress(len(paths), "reading shards") as progress,
    ):
        futures = {pool.submit(_scan, path): path for path in paths}
        for future in as_completed(futures):
            path = futures[future]
            result = future.result()
            if isinstance(result, str):
                faults[path] = result
                continue
            scans[path] = result
            read += sizes[path]
            # How many images there are is known at the end; until then, from the bytes.
            progress.total = round((progress.n + len(result.labels)) * sum(sizes.values()) / read)
            progress.add(len(result.labels), sizes[path])
    if faults:
        raise BadInput(_faults_message([faults[path] for path in paths if path in faults], len(paths)))
    return [scans[path] for path in paths]


def _scan(path: Path) -> ShardScan | str:
    """A shard's scan, or what is wrong with the shard."""
    try:
        return scan_shard(path)
    except BadInput as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"


def _faults_message(faults: list[str], num_shards: int) -> str:
    lines = [f"  {fault}" for fault in faults[:_SHARDS_SHOWN]]
    if len(faults) > _SHARDS_SHOWN:
        lines.append(f"  … and {len(faults) - _SHARDS_SHOWN} more")
    return "\n".join([f"{len(faults)} of {num_shards} shards cannot be indexed; no index was written", *lines])


def _in_directory(directory: str) -> list[str]:
    paths = sorted(glob.glob(os.path.join(glob.escape(directory), "*.tar")))
    if not paths:
        compressed = glob.glob(os.path.join(glob.escape(directory), "*.t*gz"))
        raise BadInput(
            f"{directory} holds no .tar files"
            + (f", only compressed ones such as {os.path.basename(compressed[0])}: gunzip them" if compressed else "")
        )
    stems = sorted({re.sub(r"\d+", "*", os.path.basename(path)) for path in paths})
    if len(stems) > 1:
        raise BadInput(
            f"{directory} holds tars of several names ({', '.join(stems[:4])}): say which, as in "
            f"'{os.path.join(directory, stems[0])}'"
        )
    return paths


def _size(path: Path) -> int:
    """For the progress bar; whatever is wrong with a file, its scan will say."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _common_folder(paths: Sequence[Path]) -> Path:
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise BadInput(f"the shards lie in {len(folders)} folders: say with --output where their index is to stand")
    return folders.pop()


def _name_in_index(path: Path, output: Path) -> str:
    """A path below the index relative to it, so that both can move together; any other in full."""
    folder = Path(os.path.abspath(output))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _present(file: Path, names: Sequence[str], overwrite: bool) -> tuple[Sequence[str] | None, dict[str, str]]:
    """Class names and left out files of an index of the same shards that stands there already, to be kept.

    Raises BadInput if it is one of other shards, unless those are to be overwritten."""
    if not file.exists() or overwrite:
        return None, {}
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        present = [entry["url"] for entry in index["shardlist"]]
    except OSError as error:
        raise BadInput(
            f"{file} is there already and cannot be read ({error.strerror}): mend that, or choose another --output or "
            "--split"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{file} is there already and no shard index: choose another --output or --split") from error
    if sorted(present) != sorted(names):
        raise BadInput(
            f"{file} is there already, for other shards: choose another --output or --split, or pass --overwrite"
        )
    return index.get("classes"), index.get("left_out", {})


def _require_writable(output: Path) -> None:
    """Raises BadInput now rather than after hours of reading."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output {output} cannot be made: {error.strerror}") from error
    if not os.access(output, os.W_OK):
        raise BadInput(f"the index cannot be written to {output}: say with --output where it is to stand")


def _read_classes(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--classes {file} cannot be read: {error}") from error
