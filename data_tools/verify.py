"""Checks shards against their index, and names every fault: shard, byte range and sample.

INDEX is a directory with an index, or the index's .json; a path or a URL. Compared are sizes, sha256, every tar header,
the byte range, members and label of every sample, and that no shard holds more than the index knows. --decode decodes
all images besides, as training would. Faults go to stdout, one a line. Exit codes: 0 all is well, 2 it is not."""

import argparse
import os
from concurrent.futures import as_completed

import numpy as np

from data_tools.arguments import positive, split_name
from data_tools.process_pool import process_pool
from data_tools.progress import ImageProgress
from data_tools.shard_check import ShardCheck, check_shard
from trainer.data.shard_index import ShardIndex, offsets_file
from trainer.data.storage import Storage
from trainer.errors import BadInput

SUMMARY = "check shards against their index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory with an index, or its .json; a path or a URL")
    parser.add_argument(
        "--split", type=split_name, default="train", help="name of the split, for a directory (default: train)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all CPUs)")


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if there are faults, once all are printed, or if there is no index to compare with."""
    index = ShardIndex.read(arguments.index, arguments.split, Storage())
    checks = shard_checks(index, arguments.decode)
    workers = min(arguments.workers, len(checks))
    num_faults = faulty_shards = 0
    with (
        process_pool(workers, "data_tools.shard_check") as pool,
        ImageProgress(index.num_samples, "verifying") as progress,
    ):
        futures = {pool.submit(check_shard, check): check.shard for check in checks}
        for future in as_completed(futures):
            shard, faults = futures.pop(future), future.result()
            num_faults += len(faults)
            faulty_shards += bool(faults)
            for fault in faults:
                progress.write(fault)
            progress.add(shard.num_samples, shard.num_bytes)
    if num_faults:
        raise BadInput(f"{num_faults} faults in {faulty_shards} of {len(checks)} shards: copy or make those anew")
    print(
        f"{index.name}: {index.num_samples} samples in {len(checks)} shards are as the index says"
        + (", and every image decodes" if arguments.decode else "")
    )


def shard_checks(index: ShardIndex, decode: bool) -> list[ShardCheck]:
    """A check for each shard. Raises BadInput if the byte ranges cannot be read or are not as many as the samples."""
    offsets = index.offsets
    if offsets.shape != (index.num_samples, 2) or offsets.dtype != np.int64:
        raise BadInput(
            f"{offsets_file(index.file).name} of {index.name} holds {offsets.dtype} {list(offsets.shape)} where the "
            f"index lists {index.num_samples} samples: write the index anew"
        )
    num_classes = None if index.classes is None else len(index.classes)
    ends = np.cumsum(index.shard_lengths)
    return [
        ShardCheck(
            index.shard_location(number), shard, np.array(offsets[end - shard.num_samples : end]), num_classes, decode
        )
        for number, (shard, end) in enumerate(zip(index.shards, ends.tolist(), strict=True))
    ]
