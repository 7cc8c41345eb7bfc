"""How fast shards are read, without decoding: the lane reader beside a plain sequential read of the same files."""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import webdataset as wds
from numpy.typing import NDArray

from benchmarks.corpus import Corpus
from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.tables import Section
from trainer.data.order import LaneOrder
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

_CHUNK = 2**20
_LANES, _WINDOW = 4, 64  # the default window: a block of 64 images of 100 kB is one read of 6 MB


def reading_section(corpus: Corpus, *, rounds: int) -> Section:
    """Megabytes per second from the page cache, and from the disk where the cache can be dropped."""
    index = corpus.index
    blocks = list(lane_blocks(index))
    ways: dict[str, Callable[[], int]] = {
        "sequential, as `cat SHARDS > /dev/null`": lambda: sum(map(_cat, corpus.shard_files)),
        "lanes, blocks of 64 samples": lambda: sum(_read(index, block, parse=False) for block in blocks),
        "lanes, tar headers checked": lambda: sum(_read(index, block, parse=True) for block in blocks),
        "webdataset's tar iterator": lambda: sum(_webdataset(path) for path in corpus.shard_files),
    }
    warm = take_turns({name: _timed(way, []) for name, way in ways.items()}, rounds)
    cold = take_turns({name: _timed(way, corpus.shard_files) for name, way in ways.items()}, max(2, rounds // 3))
    rows = [[name, *_figures(warm, name), *_figures(cold, name)] for name in ways]
    total = sum(shard.num_bytes for shard in index.shards)
    return Section(
        "Reading shards: MB/s, nothing decoded",
        f"{total / 1e6:.0f} MB in {len(index.shards)} shards, one thread, wall time; median round and, in brackets, "
        "the best. *Warm*: from the page cache. *Cold*: its pages dropped before each pass (`posix_fadvise`), from a "
        "disk that may have caches of its own.",
        ["reader", "warm, MB/s", "× sequential", "cold, MB/s", "× sequential"],
        rows,
    )


def _figures(costs: dict[str, Costs], name: str) -> list[str]:
    baseline = next(iter(costs.values()))
    rates = f"{costs[name].median_rate / 1e6:.0f} ({costs[name].best_rate / 1e6:.0f})"
    return [rates, ratio_text(costs[name], baseline)]


def lane_blocks(index: ShardIndex) -> Iterator[NDArray[np.int64]]:
    """The sample ids of every block of an epoch, lane after lane."""
    order = LaneOrder(index.shard_lengths, seed=0, global_batch=_LANES, lanes=_LANES, window=_WINDOW)
    last = order.steps_per_epoch * order.global_batch - 1
    for lane in range(order.lanes):
        _, block, _ = order.place(last - (order.lanes - 1 - lane))
        for number in range(block + 1):
            yield order.block(0, lane, number)


def _cat(path: str) -> int:
    buffer = bytearray(_CHUNK)
    total = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def _read(index: ShardIndex, block: NDArray[np.int64], parse: bool) -> int:
    samples = read_samples(index, block)
    if parse:
        for sample in samples:
            parse_sample(sample)
    return sum(len(sample.content) for sample in samples)


def _webdataset(path: str) -> int:
    samples = wds.WebDataset([path], shardshuffle=False)
    return sum(len(value) for sample in samples for value in sample.values() if isinstance(value, bytes))


def _timed(way: Callable[[], int], drop: list[str]) -> Callable[[], float]:
    """Seconds per byte. The pages of the files in `drop` are given up first; unwritten ones would stay, but a
    conversion syncs what it wrote."""

    def measure() -> float:
        for path in drop:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        start = time.perf_counter()
        total = way()
        return (time.perf_counter() - start) / total

    return measure
