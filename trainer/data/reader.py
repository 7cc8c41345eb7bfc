"""Reads samples from shards, a block of a lane at a time."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.errors import ShardError
from trainer.data.order import LaneOrder
from trainer.data.shard_index import ShardIndex
from trainer.data.tar_members import TarDamage, members_of

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
NO_LABEL = -1


class Sample(NamedTuple):
    """One sample as it lies in its shard. `label` is -1 where the shard holds none; `where` is for messages."""

    key: str
    image: bytes
    label: int
    where: str


@dataclass(frozen=True)
class RawSample:
    """The bytes of a sample's members, and where they came from."""

    content: bytes
    where: str


def read_samples(index: ShardIndex, samples: NDArray[np.int64]) -> list[RawSample]:
    """The bytes of these samples, in this order. Samples that are neighbours in a shard come with one sequential read.

    Raises ShardError if a shard is gone or ends too early."""
    ordered = np.sort(samples)
    contents: dict[int, RawSample] = {}
    for run in np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1):
        while len(run):
            shard, place = index.locate(int(run[0]))
            in_shard = run[: index.shards[shard].num_samples - place]
            contents.update(_read_neighbours(index, shard, in_shard))
            run = run[len(in_shard) :]
    return [contents[int(sample)] for sample in samples]


def _read_neighbours(index: ShardIndex, shard: int, samples: NDArray[np.int64]) -> dict[int, RawSample]:
    ranges = index.offsets[samples[0] : samples[-1] + 1]
    first, end = int(ranges[0, 0]), int(ranges[-1, 1])
    path = index.shard_path(shard)
    try:
        # Opened for each block: a block is megabytes, and no handle outlives a shard that was replaced.
        with open(path, "rb") as file:
            file.seek(first)
            content = file.read(end - first)
    except OSError as error:
        raise ShardError(f"shard {path} cannot be read: {error.strerror}") from error
    if len(content) < end - first:
        raise ShardError(
            f"shard {path} is truncated: bytes {first}-{end} gave {len(content)} of {end - first}; copy the shard again"
        )
    # Copies, so that a sample's memory is free again once it is used, and not only when its whole block is.
    return {
        int(sample): RawSample(content[start - first : stop - first], f"shard {path}, bytes {start}-{stop}")
        for sample, (start, stop) in zip(samples, ranges.tolist(), strict=True)
    }


def parse_sample(raw: RawSample) -> Sample:
    """Takes a sample's members apart. Raises ShardError where they are not one key's image and, if any, its label."""
    keys: dict[str, None] = {}
    label = NO_LABEL
    image = None
    try:
        for member in members_of(raw.content):
            keys[member.key] = None
            data = raw.content[member.start : member.start + member.size]
            if member.extension in IMAGE_EXTENSIONS:
                image = data
            elif member.extension == "cls":
                label = int(data)
    except (TarDamage, ValueError) as error:
        raise ShardError(_damaged(raw, keys, str(error))) from error
    if len(keys) != 1:
        raise ShardError(_damaged(raw, keys, f"members of {len(keys)} samples in the range of one"))
    if image is None:
        raise ShardError(_damaged(raw, keys, f"no image (.{', .'.join(IMAGE_EXTENSIONS)}) among the members"))
    return Sample(next(iter(keys)), image, label, raw.where)


def _damaged(raw: RawSample, keys: dict[str, None], what: str) -> str:
    names = f", sample {' / '.join(map(json.dumps, keys))}" if keys else ""
    return f"{raw.where}{names}: {what}. The shard was damaged or rewritten: copy it again, or write the index anew"


class LaneReader:
    """One lane's samples of a run, holding one block of at most `window` samples in memory."""

    def __init__(self, index: ShardIndex, order: LaneOrder) -> None:
        self._index = index
        self._order = order
        self._held: tuple[int, int] | None = None
        self._samples: list[RawSample | None] = []

    def read(self, epoch: int, position: int) -> Sample:
        """The sample at a position of an epoch that belongs to this lane. Positions come in rising order, each once."""
        lane, block, place = self._order.place(position)
        if self._held != (epoch, block):
            self._samples = []  # frees the last block before the next one is read
            self._samples.extend(read_samples(self._index, self._order.block(epoch, lane, block)))
            self._held = epoch, block
        raw, self._samples[place] = self._samples[place], None
        if raw is None:
            raise RuntimeError(f"position {position} of epoch {epoch} was read already")
        return parse_sample(raw)
