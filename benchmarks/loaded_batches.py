"""Micro-batches from shards, for steps that are timed."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch.distributed as dist

from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.model.config import ModelConfig

WORKERS = 1
"""A rank."""
AHEAD = DataConfig().prefetch + 1
"""Micro-batches that the workers may have made, or begun, while something else was measured. So many steps in a row are
taken first: the loader keeps pace with those that follow, or does not."""
ENDLESS = 10**6
"""Steps, more than are ever taken."""


def loaded_batches(shards: Path, model: ModelConfig, micro_batch: int) -> Generator[MicroBatch, None, None]:
    """This rank's. Closing it ends the workers."""
    world_size = dist.get_world_size()
    loader = LaneLoader(
        ShardIndex.open(shards), DataConfig(workers=WORKERS, window=8), image_size=model.image_size, seed=0,
        global_batch=micro_batch * world_size, micro_batch=micro_batch, rank=dist.get_rank(), world_size=world_size,
        end_step=ENDLESS,
    )  # fmt: skip
    with closing(iter(loader)) as batches:
        yield from batches
