"""The evaluation order: no shuffle, every sample exactly once, the same number of batches on every rank.

Each rank looks at a stretch of the index, in batches of equal size, so that a batch is a sequential read or two. The
last ones are padded with copies and say so in `valid`: without padding, one rank would have a batch less and the others
would wait for it in a collective."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.augment import Box, crop_and_resize
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import BadSample
from trainer.data.read_ahead import read_ahead
from trainer.data.reader import Sample, parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.data.tar_members import shown

CENTRE_SHARE = 224 / 256  # MAE's evaluation view: short side to 256, centre crop of 224 (arXiv 2111.06377)


@dataclass(frozen=True)
class EvaluationBatch:
    """images uint8 [n, 3, S, S], labels int64 [n] (-1: none), samples int64 [n] (ids in the index), and
    valid bool [n], False where a row only pads."""

    images: torch.Tensor
    labels: torch.Tensor
    samples: torch.Tensor
    valid: torch.Tensor


def evaluation_samples(num_samples: int, batch: int, rank: int, world_size: int) -> tuple[NDArray[np.int64], int]:
    """Sample ids of a rank in whole batches, and how many of them are valid. Copies of the last sample pad them."""
    per_rank = -(-num_samples // (batch * world_size)) * batch
    ids = np.arange(rank * per_rank, (rank + 1) * per_rank, dtype=np.int64)
    return np.minimum(ids, num_samples - 1), int(np.count_nonzero(ids < num_samples))


def evaluation_batches(
    index: ShardIndex,
    *,
    image_size: int,
    batch: int,
    rank: int,
    world_size: int,
    chosen: NDArray[np.int64] | None = None,
    workers: int = 2,
    storage: Storage | None = None,
) -> Iterator[EvaluationBatch]:
    """Centre crops of a rank's samples, `batch` at a time. `chosen`: rising ids of the samples that are wanted; all
    unless given.

    `workers` threads read and decode, a batch each, so that up to `workers` + 1 batches are held at a time; with 0 the
    calling thread does it.

    Raises ShardError if a shard or an image is damaged."""
    used = storage or Storage()
    all_ids = np.arange(index.num_samples) if chosen is None else chosen
    places, num_valid = evaluation_samples(len(all_ids), batch, rank, world_size)

    def read(places: NDArray[np.int64], first: int) -> EvaluationBatch:
        ids = all_ids[places]
        samples = [parse_sample(raw) for raw in read_samples(index, ids, used)]
        return EvaluationBatch(
            images=torch.stack([centre_view(sample, image_size) for sample in samples]),
            labels=torch.tensor([sample.label for sample in samples]),
            samples=torch.from_numpy(ids),
            valid=torch.arange(first, first + batch) < num_valid,
        )

    requests = [(places[first : first + batch], first) for first in range(0, len(places), batch)]
    try:
        with closing(read_ahead(lambda request: read(*request), requests, workers)) as batches:
            yield from batches
    finally:
        if storage is None:
            used.close()


def evenly_chosen(num_samples: int, most: int | None) -> NDArray[np.int64]:
    """Ids of at most `most` samples (None: all), evenly over the index: rising, without repetition."""
    count = num_samples if most is None else min(most, num_samples)
    return np.arange(count, dtype=np.int64) * num_samples // count


def centre_view(sample: Sample, size: int) -> torch.Tensor:
    """The middle of an image, uint8 [3, size, size]: a square of 224/256 of the short side, resized.

    Raises BadSample if it cannot be decoded."""
    try:
        pixels = decode_rgb(sample.image)
    except UndecodableImage as error:
        raise BadSample(f"{sample.where}, sample {shown(sample.key)}: {error}") from error
    height, width, _ = pixels.shape
    side = max(1, round(min(height, width) * CENTRE_SHARE))
    return crop_and_resize(pixels, Box((height - side) // 2, (width - side) // 2, side, side), size)
