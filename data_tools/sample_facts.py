"""What samples of a data set hold, found without decoding them."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.images import ImageHeader, read_header
from trainer.data.decode import UndecodableImage
from trainer.data.errors import ShardError
from trainer.data.reader import RawSample, parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.data.tar_members import members_of

_CHUNK = 32
_THREADS = 8  # which mostly wait for the disk or the network


@dataclass(frozen=True)
class SampleFacts:
    """A sample's label (-1: none), its image's bytes and header, and whether the converter wrote that it transcoded or
    resized the image."""

    label: int
    num_bytes: int
    header: ImageHeader
    transcoded: bool
    resized: bool


def gather_facts(index: ShardIndex, samples: NDArray[np.int64]) -> Iterator[Sequence[SampleFacts | None]]:
    """Facts on these samples, a chunk at a time, in rising order of the samples; None for one that cannot be read."""
    ordered = np.sort(samples)
    chunks = [ordered[first : first + _CHUNK] for first in range(0, len(ordered), _CHUNK)]
    storage = Storage()
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda chunk: [_facts(raw) for raw in read_chunk(index, chunk, storage)], chunks)


def read_chunk(index: ShardIndex, samples: NDArray[np.int64], storage: Storage) -> list[RawSample | None]:
    """The samples' bytes in this order; None for those that cannot be read."""
    try:
        return list(read_samples(index, samples, storage))
    except ShardError:
        if len(samples) == 1:
            return [None]
        return [raw for sample in samples for raw in read_chunk(index, np.array([sample]), storage)]


def _facts(raw: RawSample | None) -> SampleFacts | None:
    if raw is None:
        return None
    try:
        sample = parse_sample(raw)
        header = read_header(sample.image)
    except (ShardError, UndecodableImage):
        return None
    record = _record(raw)
    return SampleFacts(sample.label, len(sample.image), header, "transcoded_from" in record, "resized_from" in record)


def _record(raw: RawSample) -> dict:
    """What the .json member says, if there is one."""
    for member in members_of(raw.content):
        if member.extension == "json":
            try:
                record = json.loads(raw.content[member.start : member.start + member.size])
            except ValueError:
                return {}
            return record if isinstance(record, dict) else {}
    return {}
