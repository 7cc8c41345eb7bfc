"""The decoding processes: each yields its share of every micro-batch of its rank.

A worker owns some of the rank's lanes, so that it alone reads their blocks, and it walks through steps and epochs by
itself: there is no pause and no new process at an epoch's end. It holds, per lane, at most `window` undecoded samples,
and `prefetch` finished shares."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.augment import augment
from trainer.data.config import DataConfig
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import ShardError
from trainer.data.order import LaneOrder
from trainer.data.orphans import exit_with_parent
from trainer.data.reader import LaneReader
from trainer.data.shard_index import ShardIndex

# How long a worker that was told to stop goes on serving the training process, which may be about to save.
GRACE_SECONDS = 120


@dataclass(frozen=True)
class BatchLayout:
    """Which positions make up each micro-batch of a rank, and which worker decodes which of them.

    Micro-batch j of step s is the positions s·G + j·m·W … + m·W - 1, dealt out to the W ranks one by one."""

    global_batch: int
    micro_batch: int
    lanes: int
    rank: int
    world_size: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of this rank per step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def positions(self, first_of_step: int, micro_batch_number: int) -> NDArray[np.int64]:
        """Positions within the epoch of one micro-batch, int64 [micro_batch]."""
        first = first_of_step + micro_batch_number * self.micro_batch * self.world_size + self.rank
        return first + np.arange(self.micro_batch, dtype=np.int64) * self.world_size

    def owners(self, positions: NDArray[np.int64], num_workers: int) -> NDArray[np.int64]:
        """The worker of each position: the rank's lanes are dealt out to its workers one by one."""
        return positions % self.lanes // self.world_size % num_workers


@dataclass(frozen=True)
class Share:
    """What one worker contributes to a micro-batch: images uint8 [n, 3, S, S], labels int64 [n], sample keys."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: list[str]


@dataclass(frozen=True)
class Failure:
    """Sent in place of a share when a sample cannot be read: the message reaches the user without a worker's
    traceback."""

    message: str


class ShareDataset(IterableDataset):
    """Iterating in worker w of n (or in the training process, which counts as worker 0 of 1) yields its shares in
    order."""

    def __init__(
        self,
        index: ShardIndex,
        order: LaneOrder,
        layout: BatchLayout,
        config: DataConfig,
        image_size: int,
        steps: range,
    ) -> None:
        self._index = index
        self._order = order
        self._layout = layout
        self._config = config
        self._image_size = image_size
        self._steps = steps

    def __iter__(self) -> Iterator[Share | Failure]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        readers: dict[int, LaneReader] = {}
        try:
            for step in self._steps:
                epoch, first = self._order.locate(step)
                for number in range(self._layout.accumulation):
                    positions = self._layout.positions(first, number)
                    mine = positions[self._layout.owners(positions, num_workers) == worker]
                    yield self._share(readers, epoch, mine.tolist())
        except ShardError as error:
            yield Failure(str(error))

    def _share(self, readers: dict[int, LaneReader], epoch: int, positions: list[int]) -> Share:
        images = torch.empty((len(positions), 3, self._image_size, self._image_size), dtype=torch.uint8)
        labels = torch.empty(len(positions), dtype=torch.int64)
        keys = []
        for row, position in enumerate(positions):
            lane = position % self._order.lanes
            reader = readers.setdefault(lane, LaneReader(self._index, self._order))
            sample = reader.read(epoch, position)
            try:
                pixels = decode_rgb(sample.image)
            except UndecodableImage as error:
                raise ShardError(f"{sample.where}, sample {sample.key!r}: {error}") from error
            images[row] = augment(pixels, self._order.augmentation_key(epoch, position), self._config, self._image_size)
            labels[row] = sample.label
            keys.append(sample.key)
        return Share(images, labels, keys)


def prepare_worker(worker: int) -> None:
    """Runs first in each worker process: decides when it ends.

    Not at its first SIGTERM, which is usually meant for the training process and went to all processes of the job: it
    then serves on for GRACE_SECONDS. The second ends it at once; DataLoader sends as many to a worker that it gives up.
    And it does not outlive the training process."""

    def first_sigterm(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGTERM, first_sigterm)
    exit_with_parent()
