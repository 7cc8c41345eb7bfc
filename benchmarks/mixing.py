"""How well an epoch's order mixes: where neighbours in the shards end up, and how many places a batch comes from.

Arithmetic on sample ids, no pictures: an index of ImageNet's size in the lanes order, in webdataset's (its own shuffle
run on the ids, at open_clip's settings), and in a full permutation."""

import random
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from webdataset.filters import _shuffle

from benchmarks.tables import Section
from trainer.data.order import LaneOrder, default_lanes

Ids = NDArray[np.int64]

NEIGHBOURHOOD = 64  # samples; a batch's places are the stretches of this length that it draws from
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)
_SHARD_SHUFFLE = {"bufsize": 2000, "initial": 500}
_SAMPLE_SHUFFLE = {"bufsize": 5000, "initial": 1000}


def mixing_section(samples: int, shards: int, global_batch: int, picture: Path | None) -> Section:
    """The table, and the picture if a path is given for it."""
    edges = np.linspace(0, samples, shards + 1).astype(np.int64)
    lanes = default_lanes(global_batch)
    orders: dict[str, tuple[int, Callable[[], Ids]]] = {
        f"lanes ({lanes}, windows of 64)": (lanes * 64, lambda: lanes_order(edges, global_batch, 64)),
        f"lanes ({lanes}, windows of 512)": (lanes * 512, lambda: lanes_order(edges, global_batch, 512)),
        "webdataset shuffle(5000), 1 stream": (5000, lambda: webdataset_order(edges, global_batch, 1, 1)),
        "webdataset shuffle(5000), 8 ranks × 4 workers": (
            8 * 4 * 5000,
            lambda: webdataset_order(edges, global_batch, 8, 4),
        ),
        "full permutation": (samples, lambda: np.random.default_rng(0).permutation(samples)),
    }
    rows = []
    distances: dict[str, Ids] = {}
    for name, (held, order) in orders.items():
        epoch = order()
        distances[name] = neighbour_distances(epoch, samples)
        rows.append([name, *_row(distances[name], epoch, edges, global_batch), f"{held:,}"])
    if picture:
        draw(distances, global_batch, picture)
    remarks = [
        "Neighbours in shards that `data_tools` wrote are strangers already: it shuffles the whole data set once. "
        "`data.window` buys more distance for memory."
    ]
    return Section(
        "Mixing: where neighbours go",
        f"{samples:,} samples in {shards} shards, global batch {global_batch}, one epoch. Distance: how many samples "
        "lie between two neighbours of a shard in the epoch's order. Shards: distinct ones in the median batch. "
        f"Places: distinct stretches of {NEIGHBOURHOOD} neighbours in it. Held: undecoded samples in memory over all "
        "ranks, at most.",
        ["order", *(f"{q:.0%}" for q in _QUANTILES), "same batch", "shards", "places", "held"],
        rows,
        remarks + ([f"![Distribution of the distance between neighbours]({picture.name})"] if picture else []),
    )


def lanes_order(edges: Ids, global_batch: int, window: int) -> Ids:
    """Sample ids in the order of an epoch's positions, with the default number of lanes."""
    order = LaneOrder(np.diff(edges), seed=0, global_batch=global_batch, lanes=None, window=window)
    rows = order.steps_per_epoch * global_batch // order.lanes
    lanes = [_lane(order, lane, rows) for lane in range(order.lanes)]
    return np.stack(lanes, axis=1).ravel()


def _lane(order: LaneOrder, lane: int, rows: int) -> Ids:
    _, last_block, _ = order.place((rows - 1) * order.lanes + lane)
    return np.concatenate([order.block(0, lane, block) for block in range(last_block + 1)])[:rows]


def webdataset_order(edges: Ids, global_batch: int, ranks: int, workers: int) -> Ids:
    """Shards shuffled, dealt out to ranks and then to their workers; each worker shuffles its stream of samples and
    makes batches, which a rank takes from its workers in turn. Ends with the first worker that has no whole batch."""
    shards = list(_shuffle(iter(range(len(edges) - 1)), **_SHARD_SHUFFLE, seed=0))
    micro_batch = global_batch // ranks
    streams = [[_batches(edges, shards[r::ranks][w::workers], micro_batch, r * workers + w) for w in range(workers)]
               for r in range(ranks)]  # fmt: skip
    # A step takes a batch of every rank; zip ends with the first that has none.
    turns = [chain.from_iterable(zip(*rank, strict=False)) for rank in streams]
    return np.concatenate([np.concatenate(parts) for parts in zip(*turns, strict=False)])


def _batches(edges: Ids, shards: list[int], size: int, seed: int) -> Iterator[Ids]:
    ids = chain.from_iterable(range(edges[shard], edges[shard + 1]) for shard in shards)
    shuffled = _shuffle(ids, **_SAMPLE_SHUFFLE, rng=random.Random(seed))
    while len(batch := np.fromiter(islice(shuffled, size), dtype=np.int64)) == size:
        yield batch


def neighbour_distances(epoch: Ids, samples: int) -> Ids:
    """|position of sample i - position of sample i + 1| for all i of which the epoch holds both."""
    positions = np.full(samples, -1)
    positions[epoch] = np.arange(len(epoch))
    both = (positions[:-1] >= 0) & (positions[1:] >= 0)
    return np.abs(np.diff(positions))[both]


def _row(distances: Ids, epoch: Ids, edges: Ids, global_batch: int) -> list[str]:
    batches = epoch[: len(epoch) // global_batch * global_batch].reshape(-1, global_batch)
    position = np.full(edges[-1], -1)
    position[epoch] = np.arange(len(epoch)) // global_batch
    together = (position[:-1] == position[1:]) & (position[1:] >= 0)
    shards = np.median([len(np.unique(np.searchsorted(edges, batch, side="right"))) for batch in batches])
    places = np.median([len(np.unique(batch // NEIGHBOURHOOD)) for batch in batches])
    quantiles = [f"{int(value):,}" for value in np.quantile(distances, _QUANTILES)]
    return [*quantiles, f"{together.sum() / len(distances):.1%}", f"{shards:.0f}", f"{places:.0f}"]


def draw(distances: dict[str, Ids], global_batch: int, path: Path) -> None:
    """The share of neighbours that end up nearer than a distance, for each order."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    shares = np.linspace(0, 1, 2001)
    for name, values in distances.items():
        axis.plot(np.quantile(values, shares), shares, lw=1.6, label=name)
    axis.axvline(global_batch, color="grey", lw=0.8, ls=":")
    axis.annotate("one global batch ", (global_batch, 0.97), ha="right", va="top", fontsize=8, color="dimgrey")
    axis.set_xscale("log")
    axis.set_xlabel("distance in the epoch's order between neighbours of a shard, in samples")
    axis.set_ylabel("share of neighbours nearer than that")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
