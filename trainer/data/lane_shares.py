"""What a decoding process does with lanes: reads its samples, decodes and augments them, share by share.

A worker owns some of the rank's lanes, so that it alone reads their blocks, and it walks through steps and epochs by
itself: there is no pause and no new process at an epoch's end."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.augment import augment
from trainer.data.batches import BatchLayout, Failure, Share
from trainer.data.cache import open_storage
from trainer.data.config import DataConfig
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import BadSample, ShardError
from trainer.data.order import LaneOrder
from trainer.data.reader import LaneReader, RawSample, Sample, parse_sample
from trainer.data.shard_index import ShardIndex
from trainer.data.tar_members import shown
from trainer.errors import BadInput


class LaneShares(IterableDataset):
    """Iterating in worker w of n (or in the training process, which counts as worker 0 of 1) yields its shares in
    order, and at last, if a shard is damaged, a Failure."""

    def __init__(
        self,
        index: ShardIndex,
        order: LaneOrder,
        layout: BatchLayout,
        config: DataConfig,
        image_size: int,
        steps: range,
        after_crop: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> None:
        self._index = index
        self._order = order
        self._layout = layout
        self._config = config
        self._image_size = image_size
        self._steps = steps
        self._after_crop = after_crop

    def __iter__(self) -> Iterator[Share | Failure]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        storage = open_storage(self._config)
        ahead = (
            (epoch, position) for epoch, positions in self._positions(worker, num_workers) for position in positions
        )
        reader = LaneReader(self._index, self._order, storage, ahead, self._config.read_ahead)
        try:
            for epoch, positions in self._positions(worker, num_workers):
                yield self._share(reader, epoch, positions)
        except BadInput as error:  # a ShardError, or a package missing on this machine
            yield Failure(str(error))
        finally:
            reader.close()
            storage.close()

    def _positions(self, worker: int, num_workers: int) -> Iterator[tuple[int, list[int]]]:
        """Epoch and positions of each of a worker's shares."""
        for step in self._steps:
            epoch, first = self._order.locate(step)
            for positions in self._layout.positions(step, first):
                yield epoch, positions[self._layout.owners(positions, num_workers) == worker].tolist()

    def _share(self, reader: LaneReader, epoch: int, positions: list[int]) -> Share:
        share = Share.empty(len(positions), self._image_size)
        for row, position in enumerate(positions):
            raw = reader.read(epoch, position)
            try:
                sample, view = self._view(raw, epoch, position)
            except BadSample as error:
                if self._config.on_bad_sample == "raise":
                    raise
                sample, view = self._substitute(reader, epoch, position, error)
                share.substituted.append(f"{error}; sample {shown(sample.key)} stands in for it")
            share.put(row, view, sample.label, sample.key)
        return share

    def _substitute(
        self, reader: LaneReader, epoch: int, position: int, error: BadSample
    ) -> tuple[Sample, torch.Tensor]:
        """The first sound sample of the block. It gets the crop that the damaged one would have got."""
        for raw in reader.substitutes(epoch, position):
            try:
                return self._view(raw, epoch, position)
            except BadSample:
                continue
        raise ShardError(f"{error} (and so is every sample near it: nothing can stand in)") from error

    def _view(self, raw: RawSample, epoch: int, position: int) -> tuple[Sample, torch.Tensor]:
        sample = parse_sample(raw)
        key = self._order.augmentation_key(epoch, position)
        view = training_view(sample, key, self._config, self._image_size)
        return sample, self._after_crop(view, key) if self._after_crop else view


def training_view(sample: Sample, key: int, config: DataConfig, size: int) -> torch.Tensor:
    """A sample's augmented image, uint8 [3, size, size]. Raises BadSample if it cannot be decoded."""
    try:
        pixels = decode_rgb(sample.image)
    except UndecodableImage as error:
        raise BadSample(f"{sample.where}, sample {shown(sample.key)}: {error}") from error
    return augment(pixels, key, config, size)
