"""Shards of a class folder, cut where a test says."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_tools.imagefolder import scan_folder
from data_tools.samples import shuffled, unique_keys
from data_tools.shard_scan import describe_shard
from data_tools.shard_writer import ShardTask, write_shard
from trainer.data.shard_index import write_index


def write_uneven_shards(directory: Path, split: str, folder: Path, edges: Sequence[int], seed: int = 0) -> None:
    """The images of a folder of class folders, shuffled, in shards that begin at `edges`, and their index."""
    images, classes = scan_folder(folder)
    images = shuffled(images, seed=seed)
    keys = unique_keys([image.name for image in images])
    described = []
    for number, (first, last) in enumerate(pairwise(edges)):
        path = directory / f"{split}-{number:05d}.tar"
        write_shard(ShardTask(path, images[first:last], keys[first:last]))
        described.append(describe_shard(path))
    write_index(directory, split, [s for s, _ in described], np.concatenate([r for _, r in described]), classes, {})
