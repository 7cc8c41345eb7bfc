"""The evaluation order: no shuffle, every sample exactly once, the same number of batches on every rank.

Sample i of the index is looked at by rank i % W, in batches of equal size. The last ones are padded with copies and say
so in `valid`: without padding, one rank would have a batch less and the others would wait for it in a collective."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.augment import Box, crop_and_resize
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import ShardError
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

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
    """Sample ids of a rank, padded with its own first ids to whole batches, and how many of them are valid."""
    mine = np.arange(rank, num_samples, world_size, dtype=np.int64)
    batches = -(-num_samples // (batch * world_size))
    padding = np.resize(mine if len(mine) else np.zeros(1, dtype=np.int64), batches * batch - len(mine))
    return np.concatenate([mine, padding]), len(mine)


def evaluation_batches(
    index: ShardIndex, *, image_size: int, batch: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Centre crops of a rank's samples, `batch` at a time. Raises ShardError if a shard or an image is damaged."""
    ids, num_valid = evaluation_samples(index.num_samples, batch, rank, world_size)
    for first in range(0, len(ids), batch):
        chosen = ids[first : first + batch]
        samples = [parse_sample(raw) for raw in read_samples(index, chosen)]
        yield EvaluationBatch(
            images=torch.stack([centre_view(sample.image, sample.where, image_size) for sample in samples]),
            labels=torch.tensor([sample.label for sample in samples]),
            samples=torch.from_numpy(chosen),
            valid=torch.arange(first, first + batch) < num_valid,
        )


def centre_view(image: bytes, where: str, size: int) -> torch.Tensor:
    """The middle of an image, uint8 [3, size, size]: a square of 224/256 of the short side, resized."""
    try:
        pixels = decode_rgb(image)
    except UndecodableImage as error:
        raise ShardError(f"{where}: {error}") from error
    height, width, _ = pixels.shape
    side = max(1, round(min(height, width) * CENTRE_SHARE))
    return crop_and_resize(pixels, Box((height - side) // 2, (width - side) // 2, side, side), size)
