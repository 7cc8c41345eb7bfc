"""Features of every sample of an index, with its label beside it.

Labels and features are never two lists that have to be kept in step: each row carries the id of its sample from the
moment it is read, through the gathering over ranks, and rows are put in order, and counted, by that id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.evaluation import evaluation_batches
from trainer.data.reader import NO_LABEL
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.errors import BadInput
from trainer.evaluation.collectives import rank_and_world_size, rows_of_all_ranks
from trainer.evaluation.encoder import POOLS, Encoder, Pool


@dataclass(frozen=True)
class Features:
    """Row i of everything belongs to one sample; rows are in the order of the index, each sample once."""

    by_pool: dict[Pool, Tensor]
    """fp32 [N, D] for each pool."""

    labels: Tensor
    """int64 [N]."""

    samples: Tensor
    """int64 [N]: ids in the index, rising."""

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1


def extract_features(
    encoder: Encoder,
    index: ShardIndex,
    *,
    batch: int,
    pools: Sequence[Pool] = POOLS,
    chosen: NDArray[np.int64] | None = None,
    workers: int = 2,
    storage: Storage | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Features:
    """Features of the centre crops of an index's images, whole on every rank and on the encoder's device. Collective.

    The ranks share the images. A batch holds the same samples in the same rows on any number of ranks, so with one kind
    of device and as many threads the features have the same bits too. Takes (4 · D · pools + 17) bytes a sample, for
    the moment of gathering twice that.

    Args:
        batch: images per forward of a rank.
        chosen: rising ids of the samples that are wanted; all unless given.
        workers: threads of each rank that read and decode.
        storage: how they read; with its defaults unless given.
        progress: told after every batch how many images of all are done, as far as this rank knows.

    Raises BadInput if a sample has no label, ShardError if one is damaged.
    """
    rank, world_size = rank_and_world_size()
    wanted = index.num_samples if chosen is None else len(chosen)
    features: dict[Pool, list[Tensor]] = {pool: [] for pool in pools}
    labels, samples, valid, done = [], [], [], 0
    batches = evaluation_batches(
        index, image_size=encoder.image_size, batch=batch, rank=rank, world_size=world_size, chosen=chosen,
        workers=workers, storage=storage,
    )  # fmt: skip
    for read in batches:
        pooled = encoder(read.images)
        for pool, rows in features.items():
            rows.append(pooled[pool])
        labels.append(read.labels)
        samples.append(read.samples)
        valid.append(read.valid)
        done += batch * world_size
        progress(min(done, wanted))
    ids, seen = _gathered(samples, encoder.device), _gathered(valid, encoder.device)
    order = _once_each(ids, seen, wanted)
    found = Features(
        by_pool={pool: _gathered(features.pop(pool), encoder.device)[order] for pool in pools},
        labels=_gathered(labels, encoder.device)[order],
        samples=ids[order],
    )
    _require_labels(found, index)
    return found


def _gathered(parts: list[Tensor], device: torch.device) -> Tensor:
    rows = torch.cat(parts).to(device)
    if rows.dtype == torch.bool:  # gloo gathers no booleans
        return rows_of_all_ranks(rows.to(torch.uint8)).bool()
    return rows_of_all_ranks(rows)


def _once_each(ids: Tensor, valid: Tensor, wanted: int) -> Tensor:
    """Places of the valid rows, by rising sample id. Raises RuntimeError unless each sample came exactly once."""
    places = valid.nonzero()[:, 0]
    order = places[ids[places].argsort()]
    if len(order) != wanted or (ids[order].diff() <= 0).any():
        raise RuntimeError(f"{len(order)} features came for {wanted} samples, or one of them twice")
    return order


def _require_labels(features: Features, index: ShardIndex) -> None:
    without = (features.labels == NO_LABEL).nonzero()[:, 0]
    if len(without):
        raise BadInput(
            f"{len(without)} samples have no class (no .cls member); the first is "
            f"{_where(features, int(without[0]), index)}: evaluate on labelled shards"
        )


def require_trained_labels(held_out: Features, index: ShardIndex, num_classes: int, train: ShardIndex) -> None:
    """Raises BadInput if held-out samples have labels that nothing trained can answer with: they would count as misses.

    num_classes: that the training samples have."""
    beyond = (held_out.labels >= num_classes).nonzero()[:, 0]
    if len(beyond):
        row = int(beyond[0])
        label = int(held_out.labels[row])
        raise BadInput(
            f"{len(beyond)} held-out samples have labels that the training shards have not; the first is "
            f"{_where(held_out, row, index)}, with label {label} where {train.name} has the classes "
            f"0 to {num_classes - 1}: convert both splits with one list of classes"
        )


def _where(features: Features, row: int, index: ShardIndex) -> str:
    shard, place = index.locate(int(features.samples[row]))
    return f"no. {place} of shard {index.shards[shard].path} in {index.name}"
