"""A micro-batch that changes in the course of a run moves no sample: every step holds what it held, in that order."""

from pathlib import Path

import pytest
import torch

from tests.data.test_loader import (
    GLOBAL_BATCH,
    IMAGE_SIZE,
    STEPS_PER_EPOCH,
    assert_same,
    make_loader,
    reference_batches,
)
from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.loader import PipeLoader
from trainer.data.micro_batches import MicroBatches
from trainer.data.source import open_source
from trainer.errors import BadInput

STEPS = STEPS_PER_EPOCH + 3
# Ranks, workers per rank, sizes: changes within an epoch, at its end, at every step, and to smaller ones.
LAYOUTS = [
    (1, 0, ((0, 2), (3, 4), (4, 16))),
    (1, 3, ((0, 1), (2, 16), (STEPS_PER_EPOCH, 8))),
    (2, 2, ((0, 2), (5, 8))),
    (4, 1, tuple((step, (1, 2, 4)[step % 3]) for step in range(STEPS))),
]


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[dict]:
    return reference_batches(shards, STEPS)


def steps_of(batches: list[MicroBatch], sizes: MicroBatches, share: int, start: int) -> list[list[MicroBatch]]:
    """One rank's micro-batches by step; fails unless each has the size of its step."""
    rest, steps = iter(batches), []
    for step in range(start, STEPS):
        steps.append([next(rest) for _ in range(share // sizes.at(step))])
        assert {len(batch.keys) for batch in steps[-1]} == {sizes.at(step)}
    assert list(rest) == []
    return steps


def global_batches(shards: Path, world_size: int, workers: int, sizes: MicroBatches, start: int = 0) -> list[dict]:
    """Each step's samples in the order of positions: sample i of each rank in turn."""
    share = GLOBAL_BATCH // world_size
    ranks = []
    for rank in range(world_size):
        loader = make_loader(shards, rank, world_size, workers, sizes, start, STEPS)
        batches = list(loader)
        assert len(batches) == len(loader)
        ranks.append(steps_of(batches, sizes, share, start))
    steps = []
    for by_rank in zip(*ranks, strict=True):
        keys = [[key for batch in batches for key in batch.keys] for batches in by_rank]
        step = {"keys": [keys[rank][row] for row in range(share) for rank in range(world_size)]}
        for name in ("images", "labels", "mask_keys"):
            rows = [torch.cat([getattr(batch, name) for batch in batches]) for batches in by_rank]
            step[name] = torch.stack(rows, dim=1).flatten(0, 1)
        steps.append(step)
    return steps


@pytest.mark.parametrize(
    ("world_size", "workers", "changes"), [*LAYOUTS[:3], pytest.param(*LAYOUTS[3], marks=pytest.mark.exhaustive)]
)
def test_the_global_batches_are_those_of_a_run_that_never_changes(shards, expected, world_size, workers, changes):
    assert_same(global_batches(shards, world_size, workers, MicroBatches(changes)), expected)


@pytest.mark.parametrize(
    ("start", "workers"), [(3, 0), pytest.param(4, 2, marks=pytest.mark.exhaustive), (STEPS_PER_EPOCH + 1, 1)]
)
def test_a_resumed_loader_takes_the_size_of_the_phase_that_it_starts_in(shards, expected, start, workers):
    sizes = MicroBatches(((0, 1), (4, 2), (STEPS_PER_EPOCH, 8)))
    assert_same(global_batches(shards, 2, workers, sizes, start), expected[start:])


def test_a_pipe_gives_micro_batches_of_the_size_of_each_step(shards):
    path = f"pipe:cat {shards}/train-00000.tar"
    config = DataConfig(path=path, samples=150, workers=2, window=4)
    sizes = MicroBatches(((0, 4), (2, 16)))
    loader = PipeLoader(
        open_source(config, 0), config, image_size=IMAGE_SIZE, seed=0, global_batch=16, micro_batch=sizes, rank=0,
        world_size=1, end_step=4,
    )  # fmt: skip
    assert [len(batch.keys) for batch in loader] == [4] * 8 + [16] * 2


def test_sizes_that_do_not_divide_a_ranks_share_are_refused(shards):
    with pytest.raises(BadInput, match="16 is not a whole number of micro-batches of 6 on 2 ranks"):
        make_loader(shards, world_size=2, micro_batch=MicroBatches(((0, 4), (2, 6))))
