"""Which sample stands at which place of the run: a pure function of (seed, epoch, position).

The "lanes" order. An epoch's stream is all samples, with the shards in an order of that epoch. It is cut into L lanes
of equal length (a cut may fall inside a shard), and a lane is read in blocks of K neighbours, shuffled among
themselves. The global batch at step s takes positions s·G … s·G + G - 1 of the epoch, and position p is sample p // L
of lane p % L.

Why so: a block is one or two sequential reads, yet a global batch of 4096 mixes 256 places of the data set. With the
world size W dividing L, rank r owns the lanes r, r + W, …, so no two ranks read the same block, and still neither W nor
the number of workers has a say in what a global batch holds. Every sample comes once per epoch, but for the N % G that
would make an incomplete global batch; other samples are left out each epoch. To resume at a step is arithmetic, plus
one block per lane."""

import numpy as np
from numpy.typing import NDArray

from trainer.data.counter_rng import derive_key, derive_keys, permutation
from trainer.errors import BadInput

MAX_DEFAULT_LANES = 256

# What a key is for; the second word of every key, so that no two uses share random numbers.
_SHARDS, _BLOCK, _AUGMENT, _MASK, MIXING, DROP_PATH = range(6)


class Positions:
    """Steps, epochs and positions of a run, and the keys of the random numbers that belong to a position."""

    def __init__(self, *, seed: int, global_batch: int, num_samples: int) -> None:
        """Raises BadInput if there are fewer samples than one global batch."""
        self.seed = seed
        self.global_batch = global_batch
        self.num_samples = num_samples
        self.steps_per_epoch = num_samples // global_batch
        if self.steps_per_epoch == 0:
            raise BadInput(
                f"the data hold {num_samples} samples, fewer than one global batch of {global_batch}: "
                "lower the global batch or bring more data"
            )

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch and the first position within it of a global step (counted from 0 over the whole run)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_in_epoch * self.global_batch

    def augmentation_key(self, epoch: int, position: int) -> int:
        """Key of the random numbers that augment the sample at a position."""
        return derive_key(self.seed, _AUGMENT, epoch, position)

    def mask_keys(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keys of the masking noise of the samples at these positions, non-negative int64 [len(positions)]."""
        keys = derive_keys(derive_key(self.seed, _MASK, epoch), positions)
        return (keys >> np.uint64(1)).astype(np.int64)


class LaneOrder(Positions):
    """The order of samples in a run.

    `shard_lengths` are the samples per shard; sample ids count through the shards as the index lists them.

    Raises BadInput if there are fewer samples than one global batch, or if the lanes do not divide it."""

    def __init__(
        self, shard_lengths: NDArray[np.int64], *, seed: int, global_batch: int, lanes: int | None, window: int
    ) -> None:
        super().__init__(seed=seed, global_batch=global_batch, num_samples=int(shard_lengths.sum()))
        self.window = window
        self.lanes = default_lanes(global_batch) if lanes is None else lanes
        if global_batch % self.lanes:
            good = nearest_lanes(global_batch, 1, self.lanes)
            raise BadInput(f"data.lanes = {self.lanes} does not divide the global batch of {global_batch}: try {good}")
        self._shard_lengths = shard_lengths
        self._shard_starts = np.concatenate([[0], np.cumsum(shard_lengths)])
        self._stream_of: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def require_ranks(self, world_size: int) -> None:
        """Raises BadInput unless the lanes can be dealt out to this many ranks."""
        if self.lanes % world_size:
            good = nearest_lanes(self.global_batch, world_size, self.lanes)
            raise BadInput(
                f"data.lanes = {self.lanes} is not a multiple of the world size {world_size}: in a new run set "
                f"data.lanes={good}; a run keeps its lanes for life, so continue one on a number of ranks that divides "
                f"{self.lanes}"
            )

    def place(self, position: int) -> tuple[int, int, int]:
        """Lane, block within the lane, and place within the block, of a position in an epoch."""
        row, lane = divmod(position, self.lanes)
        block = (row + self._stagger(lane)) // self.window
        return lane, block, row - self._block_start(lane, block)

    def block(self, epoch: int, lane: int, block: int) -> NDArray[np.int64]:
        """Sample ids of a lane's block in the order in which they are drawn, int64 [at most window]."""
        starts, shards = self._stream(epoch)
        lane_start, lane_end = (edge * self.num_samples // self.lanes for edge in (lane, lane + 1))
        first = lane_start + self._block_start(lane, block)
        last = min(lane_end, lane_start + self._block_start(lane, block + 1))
        in_stream = first + permutation(derive_key(self.seed, _BLOCK, epoch, lane, block), last - first)
        slot = np.searchsorted(starts, in_stream, side="right") - 1
        return self._shard_starts[shards[slot]] + in_stream - starts[slot]

    def _stagger(self, lane: int) -> int:
        """How much shorter a lane's first block is, so that the lanes refill in turn and not all in one step."""
        return lane * self.window // self.lanes % self.window

    def _block_start(self, lane: int, block: int) -> int:
        return max(0, block * self.window - self._stagger(lane))

    def _stream(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each shard starts in the epoch's stream, and the shards in that order. Keeps the epoch in use."""
        if self._stream_of is None or self._stream_of[0] != epoch:
            shards = permutation(derive_key(self.seed, _SHARDS, epoch), len(self._shard_lengths))
            starts = np.cumsum(self._shard_lengths[shards]) - self._shard_lengths[shards]
            self._stream_of = epoch, starts, shards
        return self._stream_of[1:]


def default_lanes(global_batch: int) -> int:
    """The largest divisor of the global batch up to 256. The world size has no say: a run may continue on another."""
    return max(lanes for lanes in range(1, MAX_DEFAULT_LANES + 1) if global_batch % lanes == 0)


def nearest_lanes(global_batch: int, world_size: int, wanted: int) -> int:
    """The number of lanes nearest to `wanted` that divides the global batch and is a multiple of the world size.

    Raises BadInput if there is none."""
    if global_batch % world_size:
        raise BadInput(f"the world size {world_size} does not divide the global batch of {global_batch}: change one")
    good = [n for n in range(world_size, global_batch + 1, world_size) if global_batch % n == 0]
    return min(good, key=lambda lanes: abs(lanes - wanted))
