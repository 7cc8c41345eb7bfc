"""What a decoding process does with a pipe: decodes and augments what comes, share by share."""

from collections.abc import Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.batches import BatchLayout, Failure, Share
from trainer.data.config import DataConfig
from trainer.data.counter_rng import derive_key
from trainer.data.errors import BadSample, ShardError
from trainer.data.lane_shares import training_view
from trainer.data.order import Positions
from trainer.data.pipe import Members, PipeSource, parse_members
from trainer.data.reader import Sample
from trainer.errors import BadInput

_FEWEST_TRIES = 64  # bad samples in a row that are passed over even where the buffer is smaller


class PipeShares(IterableDataset):
    """Iterating in worker w of n (or in the training process, which counts as worker 0 of 1) yields its shares in
    order, and at last, if a command fails, a Failure. Each worker of each rank draws shards by itself."""

    def __init__(
        self,
        source: PipeSource,
        positions: Positions,
        layout: BatchLayout,
        config: DataConfig,
        image_size: int,
        steps: range,
        buffer: int,
    ) -> None:
        self._source = source
        self._positions = positions
        self._layout = layout
        self._config = config
        self._image_size = image_size
        self._steps = steps
        self._buffer = buffer

    def __iter__(self) -> Iterator[Share | Failure]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        # With the first step, lest a resumed run begin with what the run began with.
        seed = derive_key(self._positions.seed, self._layout.rank, worker, self._steps.start)
        samples = self._source.samples(seed, max(1, self._buffer // num_workers))
        try:
            for step in self._steps:
                epoch, first = self._positions.locate(step)
                for positions in self._layout.positions(step, first):
                    mine = positions[self._layout.owners(positions, num_workers) == worker]
                    yield self._share(samples, epoch, mine.tolist())
        except BadInput as error:  # a ShardError, or a package missing on this machine
            yield Failure(str(error))

    def _share(self, samples: Iterator[Members], epoch: int, positions: list[int]) -> Share:
        share = Share.empty(len(positions), self._image_size)
        for row, position in enumerate(positions):
            key = self._positions.augmentation_key(epoch, position)
            sample, view = self._next_sound(samples, key, share.substituted)
            share.put(row, view, sample.label, sample.key)
        return share

    def _next_sound(self, samples: Iterator[Members], key: int, passed_over: list[str]) -> tuple[Sample, torch.Tensor]:
        """The next sample that can be decoded, and its view; a line for each that was passed over.

        Raises BadSample for the first that cannot if the run wants it so, ShardError if more in a row cannot than the
        buffer holds: the stream has no end."""
        bad = 0
        while True:
            try:
                sample = parse_members(next(samples))
                return sample, training_view(sample, key, self._config, self._image_size)
            except BadSample as error:
                if self._config.on_bad_sample == "raise":
                    raise
                if bad >= max(_FEWEST_TRIES, self._buffer):
                    raise ShardError(f"{error} (and so are the {bad} before it: nothing can stand in)") from error
                bad += 1
                passed_over.append(f"{error}; the next of the stream stands in for it")
