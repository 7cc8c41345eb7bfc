"""Where a run's samples come from: shards with an index, or a pipe."""

from trainer.data.config import DataConfig
from trainer.data.order import LaneOrder, Positions
from trainer.data.pipe import PipeSource
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.data.urls import PIPE, scheme_of
from trainer.errors import BadInput

DataSource = ShardIndex | PipeSource


def open_source(config: DataConfig, rank: int) -> DataSource:
    """What `data.path` names. Every rank checks the shards on its machine; those behind a URL are checked by rank 0.

    Raises BadInput if there is nothing, or not what the index says."""
    if config.path is None:
        raise BadInput("no data: give --data SHARDS, or data.path in the recipe")
    if config.path.startswith(PIPE):
        assert config.samples is not None  # DataConfig saw to it
        return PipeSource(config.path, config.samples)
    storage = Storage(config.retries, config.timeout)
    index = ShardIndex.open(config.path, storage=storage, check_remote_shards=rank == 0)
    if config.cache is not None and not any(scheme_of(index.shard_location(n)) for n in range(len(index.shards))):
        raise BadInput(
            f"data.cache keeps shards that lie behind a URL, and all those of {index.name} are files already: leave "
            "data.cache and data.cache_size out"
        )
    return index


def positions_of(source: DataSource, config: DataConfig, *, seed: int, global_batch: int, world_size: int) -> Positions:
    """The steps and epochs of a run over this source. Raises BadInput if the data, the batch, the lanes and the ranks
    do not go together."""
    if isinstance(source, PipeSource):
        return Positions(seed=seed, global_batch=global_batch, num_samples=source.num_samples)
    order = LaneOrder(
        source.shard_lengths, seed=seed, global_batch=global_batch, lanes=config.lanes, window=config.window
    )
    order.require_ranks(world_size)
    return order
