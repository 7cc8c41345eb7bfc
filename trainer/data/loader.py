"""The lane loader: shards in, uint8 micro-batches out, the same global batches for any number of ranks and workers.

What a global batch holds, pixels included, is a pure function of the seed and the step (`trainer.data.order`). So there
is no state to save but the step: a loader made with `start_step` continues a run on any number of ranks and workers,
and reads at most one block per lane that was read before."""

import logging
import multiprocessing
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from trainer.data.config import DataConfig
from trainer.data.errors import ShardError, WorkerFailed
from trainer.data.order import LaneOrder
from trainer.data.shard_index import ShardIndex
from trainer.data.workers import BatchLayout, Failure, Share, ShareDataset, prepare_worker
from trainer.errors import BadInput

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """Images uint8 [m, 3, S, S] (in pinned memory if so wished), mask_keys int64 [m] for the masking noise,
    labels int64 [m] (-1: none), and the samples' keys."""

    images: torch.Tensor
    mask_keys: torch.Tensor
    labels: torch.Tensor
    keys: list[str]


class LaneLoader:
    """Micro-batches of one rank for the steps start_step … end_step - 1, over epoch ends.

    Iterating yields (end_step - start_step) · accumulation micro-batches. Memory per rank: at most lanes / world_size ·
    window undecoded samples (half of that on average; for ImageNet at most 256 · 64 · 110 kB = 1.8 GB over all ranks
    together) and `prefetch` + 2 micro-batches of pixels.

    Raises BadInput if batch, ranks and lanes do not divide one another or the data are fewer than a global batch.
    Iterating raises ShardError if a shard or an image is damaged, and WorkerFailed if a worker process dies."""

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        end_step: int,
        pin_memory: bool = False,
    ) -> None:
        if global_batch % (micro_batch * world_size):
            raise BadInput(
                f"a global batch of {global_batch} is not a whole number of micro-batches of {micro_batch} on "
                f"{world_size} ranks: change one of them"
            )
        self.order = LaneOrder(
            index.shard_lengths, seed=seed, global_batch=global_batch, lanes=config.lanes, window=config.window
        )
        self.order.require_ranks(world_size)
        lanes = self.order.lanes
        self.layout = BatchLayout(global_batch, micro_batch, lanes, rank, world_size)
        self.num_workers = min(config.workers, lanes // world_size)
        if self.num_workers < config.workers and rank == 0:
            log.info("data.workers lowered from %d to %d: one lane per worker", config.workers, self.num_workers)
        self._prefetch = config.prefetch
        self._pin_memory = pin_memory
        self._steps = range(start_step, end_step)
        self._dataset = ShareDataset(index, self.order, self.layout, config, image_size, self._steps)

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def __len__(self) -> int:
        """Micro-batches that iterating yields."""
        return len(self._steps) * self.layout.accumulation

    def __iter__(self) -> Generator[MicroBatch, None, None]:
        """Close the generator (`contextlib.closing`) where an exception may leave it unfinished: its workers then end
        at once, and not two minutes after the interpreter has told them to."""
        shares = self._shares()
        for step in self._steps:
            epoch, first = self.order.locate(step)
            for number in range(self.layout.accumulation):
                positions = self.layout.positions(first, number)
                owners = self.layout.owners(positions, max(1, self.num_workers))
                parts = [self._next_share(shares) for _ in range(max(1, self.num_workers))]
                mask_keys = torch.from_numpy(self.order.mask_keys(epoch, positions))
                yield _assemble(parts, owners, mask_keys, self._pin_memory)

    def _shares(self) -> Iterator[Share | Failure]:
        if self.num_workers == 0:
            return iter(self._dataset)
        # A server process that forks the workers, rather than a fork of this process: by now it runs threads of the
        # process group and of the accelerator, whose locks a fork would copy in whatever state they are. The server
        # imports once what the workers need.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trainer.data.worker_server"])
        return iter(
            DataLoader(
                self._dataset,
                batch_size=None,
                num_workers=self.num_workers,
                prefetch_factor=self._prefetch,
                multiprocessing_context=context,
                worker_init_fn=prepare_worker,
                generator=torch.Generator(),  # for seeds that nobody uses; the global generator is the model's
            )
        )

    @staticmethod
    def _next_share(shares: Iterator[Share | Failure]) -> Share:
        try:
            share = next(shares)
        # A dead worker shows as DataLoader's RuntimeError, or as a broken connection to the tensors that it had sent.
        except (RuntimeError, EOFError, OSError) as error:
            raise WorkerFailed(
                f"a data worker failed ({type(error).__name__}, see above). If it was killed for want of memory, "
                "lower data.workers, data.prefetch or data.window"
            ) from error
        if isinstance(share, Failure):
            raise ShardError(share.message)
        return share


def _assemble(parts: list[Share], owners: np.ndarray, mask_keys: torch.Tensor, pin_memory: bool) -> MicroBatch:
    """Puts the workers' shares together in the order of positions."""
    size = parts[0].images.shape[1:]
    images = torch.empty((len(owners), *size), dtype=torch.uint8, pin_memory=pin_memory)
    labels = torch.empty(len(owners), dtype=torch.int64)
    keys = [""] * len(owners)
    for worker, part in enumerate(parts):
        rows = np.flatnonzero(owners == worker)
        images[torch.from_numpy(rows)] = part.images
        labels[torch.from_numpy(rows)] = part.labels
        for row, key in zip(rows.tolist(), part.keys, strict=True):
            keys[row] = key
    return MicroBatch(images, mask_keys, labels, keys)
