"""Compares one shard with its index, byte range by byte range, and goes on after a fault.

`data_tools.shard_scan` asks what is in a shard, and stops where it cannot tell. Here the index says what should be
where, so that a damaged sample does not hide those behind it."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import ShardError
from trainer.data.reader import RawSample, parse_sample
from trainer.data.shard_index import Shard
from trainer.data.storage import Storage
from trainer.data.tar_members import TarDamage, members_of, members_of_archive, shown
from trainer.data.urls import redact

_BLOCK_BYTES = 8 * 2**20  # read at once: what a sequential reader would


@dataclass(frozen=True)
class ShardCheck:
    """What is to be checked: a shard's place and its entry in the index, the byte ranges of its samples, int64
    [samples, 2] (None: not known, so that only size and sha256 can be compared), the number of classes (None: the index
    names none), and whether to decode the images."""

    location: str
    shard: Shard
    ranges: NDArray[np.int64] | None
    num_classes: int | None
    decode: bool


def check_shard(task: ShardCheck) -> list[str]:
    """Every fault of a shard, a line for each, naming the shard and, where there are such, byte range and sample."""
    name = redact(task.location)
    if task.ranges is not None and (fault := _range_fault(task.ranges)):
        return [f"shard {name}: {fault}"]
    storage = Storage()
    try:
        size = storage.facts(task.location).size
    except ShardError as error:
        return [f"shard {error}"]
    faults: list[str] = []
    try:
        for fault in _faults(task, name, storage, task.shard.num_bytes if size is None else size):
            faults.append(fault)
    except ShardError as error:
        faults.append(str(error))
    return faults


def _range_fault(ranges: NDArray[np.int64]) -> str | None:
    """Whether the byte ranges can be those of samples one after the other."""
    edges = ranges.reshape(-1)
    wrong = np.flatnonzero(np.diff(edges, prepend=0) < 0)
    if not len(wrong):
        return None
    return f"the index places sample {wrong[0] // 2} before the one that it follows, or at a negative offset"


def _faults(task: ShardCheck, name: str, storage: Storage, size: int) -> Iterator[str]:
    """Reads a shard of `size` bytes once, from its beginning to its end."""
    if size != task.shard.num_bytes:
        yield f"shard {name}: has {size} bytes where the index says {task.shard.num_bytes}"
    digest = hashlib.sha256()
    if task.ranges is None:
        for first in range(0, size, _BLOCK_BYTES):
            digest.update(storage.read_range(task.location, first, min(first + _BLOCK_BYTES, size), size))
    else:
        yield from _content_faults(task, task.ranges, name, storage, size, digest)
    if size == task.shard.num_bytes and digest.hexdigest() != task.shard.sha256:
        yield (
            f"shard {name}: its sha256 is {digest.hexdigest()[:12]}… where the index says {task.shard.sha256[:12]}…: "
            "bytes have changed" + ("" if task.decode else "; if nothing else is said, --decode may tell which")
        )


def _content_faults(
    task: ShardCheck, ranges: NDArray[np.int64], name: str, storage: Storage, size: int, digest: "hashlib._Hash"
) -> Iterator[str]:
    """Faults of the samples, and of what lies between and behind them. All that is read goes into `digest`."""
    keys: set[str] = set()
    whole = int(np.searchsorted(ranges[:, 1], size, side="right"))  # samples that the file is long enough for
    position = 0
    for first, last in _blocks(ranges[:whole]):
        content = storage.read_range(task.location, position, int(ranges[last - 1, 1]), size)
        digest.update(content)
        yield from _block_faults(task, name, content, position, ranges[first:last], keys)
        position += len(content)
    tail = storage.read_range(task.location, position, size, size) if position < size else b""
    digest.update(tail)
    if whole < len(ranges):
        first, end, lost = int(ranges[whole, 0]), int(ranges[-1, 1]), len(ranges) - whole
        yield f"shard {name}, bytes {first}-{end}: the last {lost} samples are cut off"
    else:
        yield from _strangers(tail, name, position, ends_archive=True)


def _block_faults(
    task: ShardCheck, name: str, content: bytes, block: int, ranges: NDArray[np.int64], keys: set[str]
) -> Iterator[str]:
    """Faults of the samples in a block, and of what lies before each. `block` is where it begins in the shard."""
    position = block
    for start, end in ranges.tolist():
        yield from _strangers(content[position - block : start - block], name, position)
        sample = RawSample(content[start - block : end - block], f"shard {name}, bytes {start}-{end}")
        yield from _sample_faults(sample, task, keys)
        position = end


def _blocks(ranges: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cuts samples into blocks of about _BLOCK_BYTES: the first sample of each, and the one that follows its last."""
    if len(ranges):
        blocks = ranges[:, 1] // _BLOCK_BYTES
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        yield from pairwise([*starts.tolist(), len(ranges)])


def _sample_faults(raw: RawSample, task: ShardCheck, keys: set[str]) -> Iterator[str]:
    try:
        sample = parse_sample(raw)
    except ShardError as error:
        yield str(error)
        return
    where = f"{raw.where}, sample {shown(sample.key)}"
    if sample.key in keys:
        yield f"{where}: another sample of the shard has the same key"
    keys.add(sample.key)
    if sample.label < -1 or (task.num_classes is not None and sample.label >= task.num_classes):
        yield f"{where}: its label is {sample.label}, and the index names {task.num_classes or 'no'} classes"
    if task.decode:
        try:
            decode_rgb(sample.image)
        except UndecodableImage as error:
            yield f"{where}: {error}"


def _strangers(stretch: bytes, name: str, position: int, *, ends_archive: bool = False) -> Iterator[str]:
    """Faults of a stretch in which the index knows no samples: what lies between two, or after the last one."""
    where = f"shard {name}, bytes {position}-{position + len(stretch)}"
    try:
        found = members_of_archive(io.BytesIO(stretch), len(stretch)) if ends_archive else members_of(stretch)
        for member in found:
            yield f"{where}: {shown(member.name)} belongs to no sample in the index"
    except TarDamage as error:
        yield f"{where}: {error}"
