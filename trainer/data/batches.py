"""Micro-batches, and the shares of them that one decoding process each contributes."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.micro_batches import MicroBatches


@dataclass(frozen=True)
class MicroBatch:
    """Images uint8 [m, 3, S, S] (in pinned memory if so wished), mask_keys int64 [m] for the masking noise,
    labels int64 [m] (-1: none), the samples' keys, and one line for each sample that another one stands in for."""

    images: torch.Tensor
    mask_keys: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    substituted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """What one worker contributes to a micro-batch: images uint8 [n, 3, S, S], labels int64 [n], sample keys, and one
    line for each sample that another one stands in for."""

    images: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    substituted: list[str]

    @classmethod
    def empty(cls, samples: int, image_size: int) -> "Share":
        """Room for this many samples."""
        images = torch.empty((samples, 3, image_size, image_size), dtype=torch.uint8)
        return cls(images, torch.empty(samples, dtype=torch.int64), [], [])

    def put(self, row: int, view: torch.Tensor, label: int, key: str) -> None:
        """Fills the next row. Rows come in order."""
        self.images[row] = view
        self.labels[row] = label
        self.keys.append(key)


@dataclass(frozen=True)
class Failure:
    """Sent in place of a share when a sample cannot be read: the message reaches the user without a worker's
    traceback."""

    message: str


@dataclass(frozen=True)
class BatchLayout:
    """Which positions make up each micro-batch of a rank, and which worker decodes which of them.

    Of the positions s·G … s·G + G - 1 of step s, rank r of W has each W-th, beginning with s·G + r. In that order they
    are cut into micro-batches, so that the size of those moves no sample to another rank or step."""

    global_batch: int
    micro_batches: MicroBatches
    lanes: int
    rank: int
    world_size: int

    def positions(self, step: int, first: int) -> NDArray[np.int64]:
        """Positions within the epoch of the rank's micro-batches of a step, whose positions begin at `first`;
        int64 [accumulation, micro-batch]."""
        mine = first + self.rank + np.arange(self.global_batch // self.world_size, dtype=np.int64) * self.world_size
        return mine.reshape(-1, self.micro_batches.at(step))

    def owners(self, positions: NDArray[np.int64], num_workers: int) -> NDArray[np.int64]:
        """The worker of each position: the rank's lanes are dealt out to its workers one by one."""
        return positions % self.lanes // self.world_size % num_workers


def assemble(parts: list[Share], owners: NDArray[np.int64], mask_keys: torch.Tensor, pin_memory: bool) -> MicroBatch:
    """Puts the workers' shares together in the order of positions."""
    size = parts[0].images.shape[1:]
    images = torch.empty((len(owners), *size), dtype=torch.uint8, pin_memory=pin_memory)
    labels = torch.empty(len(owners), dtype=torch.int64)
    keys = [""] * len(owners)
    for worker, part in enumerate(parts):
        rows = np.flatnonzero(owners == worker)
        labels[torch.from_numpy(rows)] = part.labels
        # One by one: assigning images through an index tensor takes seven times as long.
        for row, image, key in zip(rows.tolist(), part.images, part.keys, strict=True):
            images[row] = image
            keys[row] = key
    return MicroBatch(images, mask_keys, labels, keys, [line for part in parts for line in part.substituted])
