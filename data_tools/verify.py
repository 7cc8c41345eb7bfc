"""Checks shards against their index, and names every fault: shard, byte range and sample.

INDEX is a directory with an index, or the index's .json; a path or a URL. Every split in a directory is
checked, unless --split names one. Compared are sizes, sha256, every tar header, the byte range, members and label of
every sample, and that no shard holds more than the index knows. --decode decodes all images besides, as training would.
Faults go to stdout, one a line, and a line for each split without any. Exit codes: 0 all is well, 2 it is not."""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from numpy.typing import NDArray

from data_tools.arguments import positive, split_name
from data_tools.process_pool import process_pool
from data_tools.progress import ImageProgress
from data_tools.shard_check import ShardCheck, check_shard
from data_tools.splits import splits_in
from trainer.data.shard_index import ShardIndex, offsets_file
from trainer.data.storage import Storage
from trainer.errors import BadInput

SUMMARY = "check shards against their index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory with an index, or its .json; a path or a URL")
    parser.add_argument(
        "--split", type=split_name, help="name of the split, for a directory (default: all in it; of a URL, train)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all CPUs)")


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if there are faults, once all are printed, or if there is no index to compare with."""
    splits = [arguments.split] if arguments.split else splits_in(arguments.index) or ["train"]
    indices = [ShardIndex.read(arguments.index, split, Storage()) for split in splits]
    num_shards = sum(len(index.shards) for index in indices)
    faults: list[int] = []  # of each file that has any
    with process_pool(min(arguments.workers, num_shards), "data_tools.shard_check") as pool:
        for index in indices:
            found = _verify(pool, index, arguments.decode)
            if not found:
                print(
                    f"{index.name}: {index.num_samples} samples in {len(index.shards)} shards are as the index says"
                    + (", and every image decodes" if arguments.decode else "")
                )
            faults += found
    if faults:
        raise BadInput(
            f"{sum(faults)} faults in {len(faults)} of {num_shards + len(indices)} files, shards and byte ranges: "
            "copy or make those anew"
        )


def _verify(pool: ProcessPoolExecutor, index: ShardIndex, decode: bool) -> list[int]:
    """Prints the faults of a split, and returns how many each file has that has any."""
    faults: list[int] = []
    with ImageProgress(index.num_samples, f"verifying {index.file.stem}") as progress:
        try:
            offsets = _offsets(index)
        except BadInput as error:
            offsets = None
            faults.append(1)
            progress.write(f"{error}; until then only sizes and sha256 are compared")
        futures = {pool.submit(check_shard, check): check.shard for check in shard_checks(index, offsets, decode)}
        for future in as_completed(futures):
            shard, found = futures.pop(future), future.result()
            if found:
                faults.append(len(found))
            for fault in found:
                progress.write(fault)
            progress.add(shard.num_samples, shard.num_bytes)
    return faults


def _offsets(index: ShardIndex) -> NDArray[np.int64]:
    """Raises BadInput if the byte ranges cannot be read or are not as many as the samples."""
    offsets = index.offsets
    if offsets.shape != (index.num_samples, 2) or offsets.dtype != np.int64:
        raise BadInput(
            f"{offsets_file(index.file).name} of {index.name} holds {offsets.dtype} {list(offsets.shape)} where the "
            f"index lists {index.num_samples} samples: write the index anew"
        )
    return offsets


def shard_checks(index: ShardIndex, offsets: NDArray[np.int64] | None, decode: bool) -> list[ShardCheck]:
    """A check for each shard; without byte ranges (None), one of its size and sha256 only."""
    num_classes = None if index.classes is None else len(index.classes)
    ends = np.cumsum(index.shard_lengths)
    return [
        ShardCheck(
            index.shard_location(number),
            shard,
            None if offsets is None else np.array(offsets[end - shard.num_samples : end]),
            num_classes,
            decode,
        )
        for number, (shard, end) in enumerate(zip(index.shards, ends.tolist(), strict=True))
    ]
