"""Reads samples from shards, a block of a lane at a time, the next blocks in the background."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.errors import BadSample
from trainer.data.order import LaneOrder
from trainer.data.read_ahead import read_ahead
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.data.tar_members import TarDamage, members_of, shown
from trainer.data.urls import redact

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
NO_LABEL = -1
_LARGEST_LABEL = 2**31 - 1
_LABEL_BYTES = 20


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


def read_samples(index: ShardIndex, samples: NDArray[np.int64], storage: Storage | None = None) -> list[RawSample]:
    """The bytes of these samples, in this order. Samples that are neighbours in a shard come with one sequential read.

    Raises ShardError if a shard is gone, has another size than in the index, or cannot be reached."""
    storage = storage or Storage()
    ordered = np.unique(samples)
    contents: dict[int, RawSample] = {}
    for run in np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1):
        while len(run):
            shard, place = index.locate(int(run[0]))
            in_shard = run[: index.shards[shard].num_samples - place]
            contents.update(_read_neighbours(index, shard, in_shard, storage))
            run = run[len(in_shard) :]
    return [contents[int(sample)] for sample in samples]


def _read_neighbours(
    index: ShardIndex, shard: int, samples: NDArray[np.int64], storage: Storage
) -> dict[int, RawSample]:
    ranges = index.offsets[samples[0] : samples[-1] + 1]
    first, end = int(ranges[0, 0]), int(ranges[-1, 1])
    location, whole = index.shard_location(shard), index.shards[shard]
    content = storage.read_range(location, first, end, whole.num_bytes, whole.sha256)
    # Copies, so that a sample's memory is free again once it is used, and not only when its whole block is. For the
    # moment of cutting, the block is held twice.
    return {
        int(sample): RawSample(content[start - first : stop - first], f"shard {redact(location)}, bytes {start}-{stop}")
        for sample, (start, stop) in zip(samples, ranges.tolist(), strict=True)
    }


def parse_sample(raw: RawSample) -> Sample:
    """Takes a sample's members apart. Raises BadSample where they are not one key's image and, if any, its label."""
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
                label = parse_label(data)
    except (TarDamage, ValueError) as error:
        raise BadSample(_damaged(raw, keys, str(error))) from error
    if len(keys) != 1:
        raise BadSample(_damaged(raw, keys, f"members of {len(keys)} samples in the range of one"))
    if image is None:
        raise BadSample(_damaged(raw, keys, f"no image (.{', .'.join(IMAGE_EXTENSIONS)}) among the members"))
    return Sample(next(iter(keys)), image, label, raw.where)


def parse_label(content: bytes) -> int:
    """The class number in a `.cls`; -1 says that there is none. Raises ValueError in one short line."""
    try:
        label = int(content) if len(content) <= _LABEL_BYTES else None
    except ValueError:
        label = None
    if label is None or not NO_LABEL <= label <= _LARGEST_LABEL:
        raise ValueError(f"its .cls is {shown(content[:200].decode('utf-8', 'replace'))}, not a class number")
    return label


def _damaged(raw: RawSample, keys: dict[str, None], what: str) -> str:
    names = f", sample {' / '.join(map(shown, keys))}" if keys else ""
    return f"{raw.where}{names}: {what}. The shard was damaged or rewritten: copy it again, or write the index anew"


class LaneReader:
    """The samples at given positions of a run, in their order: the lanes of one worker.

    Holds at most one block of `window` samples per lane, freed sample by sample, and `depth` blocks read ahead, each of
    these twice for the moment of being cut into samples. The order in which lanes need their next block is known, so
    those that are read ahead are the very next ones."""

    def __init__(
        self, index: ShardIndex, order: LaneOrder, storage: Storage, positions: Iterable[tuple[int, int]], depth: int
    ) -> None:
        """`positions`: (epoch, position) of every `read` to come, in rising order; drawn from as needed."""
        self._index = index
        self._order = order
        self._storage = storage
        self._held: dict[int, list[RawSample | None]] = {}
        self._held_block: dict[int, tuple[int, int]] = {}
        self._blocks = read_ahead(self._read_block, self._blocks_needed(positions), depth)

    def read(self, epoch: int, position: int) -> RawSample:
        """The sample at the next of the positions."""
        lane, block, place = self._order.place(position)
        if self._held_block.get(lane) != (epoch, block):
            self._held[lane] = []  # frees the last block before the next one is taken
            self._held[lane] = next(self._blocks)
            self._held_block[lane] = epoch, block
        raw, self._held[lane][place] = self._held[lane][place], None
        if raw is None:
            raise RuntimeError(f"position {position} of epoch {epoch} was read already")
        return raw

    def substitutes(self, epoch: int, position: int) -> Iterator[RawSample]:
        """What may stand in for a damaged sample: the others of its block, those drawn after it first. A function of
        the position alone, so the same in every layout and after a resume; read anew, for most are used already."""
        lane, block, place = self._order.place(position)
        samples = self._order.block(epoch, lane, block)
        for turn in range(1, len(samples)):
            sample = samples[(place + turn) % len(samples)]
            yield read_samples(self._index, np.array([sample]), self._storage)[0]

    def close(self) -> None:
        """Drops what is being read ahead."""
        self._blocks.close()

    def _blocks_needed(self, positions: Iterable[tuple[int, int]]) -> Iterator[NDArray[np.int64]]:
        """Sample ids of each block at the first position in it."""
        last: dict[int, tuple[int, int]] = {}
        for epoch, position in positions:
            lane, block, _ = self._order.place(position)
            if last.get(lane) != (epoch, block):
                last[lane] = epoch, block
                yield self._order.block(epoch, lane, block)

    def _read_block(self, samples: NDArray[np.int64]) -> list[RawSample | None]:
        return [*read_samples(self._index, samples, self._storage)]
