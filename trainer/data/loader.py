"""Shards in, uint8 micro-batches out: from lanes, exactly and resumably, or from a pipe, as it comes.

With lanes, what a global batch holds, pixels included, is a pure function of the seed and the step
(`trainer.data.order`). So there is no state to save but the step: a loader made with `start_step` continues a run on
any number of ranks and workers, and reads at most one block per lane that was read before."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from trainer.byte_sizes import show_bytes
from trainer.data.batches import BatchLayout, Failure, MicroBatch, Share, assemble
from trainer.data.config import DataConfig
from trainer.data.errors import ShardError, WorkerFailed
from trainer.data.lane_shares import LaneShares
from trainer.data.micro_batches import MicroBatches
from trainer.data.order import LaneOrder, Positions, default_lanes
from trainer.data.pipe import PipeSource
from trainer.data.pipe_shares import PipeShares
from trainer.data.shard_index import ShardIndex
from trainer.data.source import DataSource
from trainer.data.workers import shares_of_workers

log = logging.getLogger(__name__)


class Loader(ABC):
    """Micro-batches of one rank for the steps of a range, over epoch ends.

    Iterating yields the micro-batches of each step in turn. It raises ShardError if data cannot be read or are
    damaged, and WorkerFailed if a worker process dies."""

    def __init__(
        self,
        dataset: IterableDataset,
        positions: Positions,
        layout: BatchLayout,
        steps: range,
        *,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self.layout = layout
        self.num_workers = num_workers
        self._dataset = dataset
        self._positions = positions
        self._steps = steps
        self._prefetch = prefetch
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        """Micro-batches that iterating yields."""
        share = self.layout.global_batch // self.layout.world_size
        return sum(share // self.layout.micro_batches.at(step) for step in self._steps)

    def __iter__(self) -> Generator[MicroBatch, None, None]:
        """Close the generator (`contextlib.closing`) where an exception may leave it unfinished: its workers then end
        at once, and not two minutes after the interpreter has told them to."""
        shares = shares_of_workers(self._dataset, self.num_workers, self._prefetch)
        workers = max(1, self.num_workers)
        for step in self._steps:
            epoch, first = self._positions.locate(step)
            for positions in self.layout.positions(step, first):
                parts = [_next_share(shares) for _ in range(workers)]
                mask_keys = torch.from_numpy(self._positions.mask_keys(epoch, positions))
                yield assemble(parts, self.layout.owners(positions, workers), mask_keys, self._pin_memory)

    @abstractmethod
    def describe(self) -> str:
        """One sentence for the start of a run: how the data come, and the memory that they take."""


class LaneLoader(Loader):
    """Micro-batches of one rank for the steps start_step … end_step - 1, the same global batches for any number of
    ranks and workers.

    Memory per rank: undecoded samples as `memory_bound` says (for ImageNet with 256 lanes of 64 at most 1.8 GB over all
    ranks together, half of that on average, plus at most 56 MB per worker that reads ahead), and `prefetch` + 2
    micro-batches of pixels, which grow where the micro-batch does.

    `after_crop`: what is done to each view after crop and flip, (uint8 [3, S, S], the sample's key) → the same. It runs
    in the workers, so it must go through pickle.

    Raises BadInput if batch, ranks and lanes do not divide one another or the data are fewer than a global batch."""

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        global_batch: int,
        micro_batch: int | MicroBatches,
        rank: int,
        world_size: int,
        start_step: int = 0,
        end_step: int,
        pin_memory: bool = False,
        after_crop: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> None:
        micro_batches = _whole_micro_batches(micro_batch, global_batch, world_size)
        self.order = LaneOrder(
            index.shard_lengths, seed=seed, global_batch=global_batch, lanes=config.lanes, window=config.window
        )
        self.order.require_ranks(world_size)
        layout = BatchLayout(global_batch, micro_batches, self.order.lanes, rank, world_size)
        num_workers = min(config.workers, self.order.lanes // world_size)
        if num_workers < config.workers and rank == 0:
            log.info("data.workers lowered from %d to %d: one lane per worker", config.workers, num_workers)
        steps = range(start_step, end_step)
        super().__init__(
            LaneShares(index, self.order, layout, config, image_size, steps, after_crop), self.order, layout, steps,
            num_workers=num_workers, prefetch=config.prefetch, pin_memory=pin_memory,
        )  # fmt: skip
        self._index = index
        self._config = config

    def memory_bound(self) -> int:
        """Bytes of undecoded samples that this rank holds at most, for samples of mean size:
        (lanes / world_size + 2 · workers · read_ahead) · window · mean bytes of a sample. Twice, for a block that was
        read is held together with the samples that are cut out of it; without read_ahead that is one block a worker."""
        mean = sum(shard.num_bytes for shard in self._index.shards) / self.order.num_samples
        read = max(1, self.num_workers) * max(1, 2 * self._config.read_ahead)
        block = min(self.order.window, -(-self.order.num_samples // self.order.lanes))
        return round((self.order.lanes // self.layout.world_size + read) * block * mean)

    def describe(self) -> str:
        cache, cache_size = self._config.cache, self._config.cache_size
        kept = f"; cache of at most {show_bytes(cache_size)} in {cache}" if cache_size is not None else ""
        return (
            f"data: {self.order.lanes} lanes of blocks of {self.order.window}, {self.num_workers} workers per rank; "
            f"at most {self.memory_bound() / 1e6:.0f} MB of undecoded images per rank{kept}"
        )


class PipeLoader(Loader):
    """Micro-batches of one rank from `pipe:`. Resampled and shuffled in a buffer: neither exactly-once nor exactly
    resumable.

    Memory per rank: `lanes` / world_size · `window` undecoded samples, as for lanes."""

    def __init__(
        self,
        source: PipeSource,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        global_batch: int,
        micro_batch: int | MicroBatches,
        rank: int,
        world_size: int,
        start_step: int = 0,
        end_step: int,
        pin_memory: bool = False,
    ) -> None:
        micro_batches = _whole_micro_batches(micro_batch, global_batch, world_size)
        positions = Positions(seed=seed, global_batch=global_batch, num_samples=source.num_samples)
        # With so many lanes, rows are dealt out to the workers in turn.
        layout = BatchLayout(global_batch, micro_batches, world_size * max(1, config.workers), rank, world_size)
        steps = range(start_step, end_step)
        self._buffer = (config.lanes or default_lanes(global_batch)) * config.window // world_size
        super().__init__(
            PipeShares(source, positions, layout, config, image_size, steps, self._buffer), positions, layout, steps,
            num_workers=config.workers, prefetch=config.prefetch, pin_memory=pin_memory,
        )  # fmt: skip

    def describe(self) -> str:
        return (
            "data: from pipe:, resampled: NOT each sample exactly once per epoch, NOT exactly resumable (shards with "
            f"index are both); at most {self._buffer} undecoded images per rank"
        )


def make_loader(source: DataSource, config: DataConfig, **settings: Any) -> Loader:
    """The loader that goes with a source. `settings` are the keyword arguments that both kinds share."""
    if isinstance(source, PipeSource):
        return PipeLoader(source, config, **settings)
    return LaneLoader(source, config, **settings)


def _whole_micro_batches(sizes: int | MicroBatches, global_batch: int, world_size: int) -> MicroBatches:
    """A single number is the micro-batch of every step. Raises BadInput if one is not contained in a rank's share."""
    micro_batches = MicroBatches.always(sizes) if isinstance(sizes, int) else sizes
    micro_batches.require_whole(global_batch, world_size)
    return micro_batches


def _next_share(shares: Iterator[Share | Failure]) -> Share:
    try:
        share = next(shares)
    # A dead worker shows as DataLoader's RuntimeError, or as a broken connection to the tensors that it had sent.
    # Any other exception is one that the worker should not have raised.
    except StopIteration:
        raise  # this process asked for more shares than there are
    except Exception as error:
        raise WorkerFailed(
            f"a data worker failed ({type(error).__name__}, see above). If it was killed for want of memory, "
            "lower data.workers, data.prefetch or data.window"
        ) from error
    if isinstance(share, Failure):
        raise ShardError(share.message)
    return share
