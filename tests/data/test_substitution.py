"""With `data.on_bad_sample: skip-and-substitute`, a damaged sample costs no rank a row, and no layout another batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.test_faults import VICTIM, blank_an_image, overwrite, scramble_a_header
from tests.data.test_loader import GLOBAL_BATCH, LAYOUTS, SEED, STEPS_PER_EPOCH, WINDOW, make_loader
from tests.data.test_order import sample_at
from trainer.data.augment import augment
from trainer.data.config import DataConfig
from trainer.data.decode import decode_rgb
from trainer.data.errors import ShardError
from trainer.data.order import LaneOrder
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

SUBSTITUTE = {"on_bad_sample": "skip-and-substitute"}
DAMAGED = {80: scramble_a_header, 81: blank_an_image, 82: scramble_a_header, 3: blank_an_image, 149: blank_an_image}


@pytest.fixture(scope="module")
def damaged(shards, tmp_path_factory) -> Path:
    """A copy with five damaged samples, three of them neighbours."""
    copy = Path(shutil.copytree(shards, tmp_path_factory.mktemp("damaged") / "copy"))
    index = ShardIndex.open(shards)
    for sample, damage in DAMAGED.items():
        shard, _ = index.locate(sample)
        ranges = np.zeros((21, 2), dtype=np.int64)
        ranges[20] = index.offsets[sample]
        damage(copy / index.shards[shard].path, ranges)
    return copy


def rows(path: Path, start=0, world_size=1, workers=0, micro_batch=16) -> list[tuple]:
    """(step, micro-batch, row of the global batch) in order: key, image, and the lines about substitutes by step."""
    end = 2 * STEPS_PER_EPOCH
    ranks = [
        list(make_loader(path, rank, world_size, workers, micro_batch, start, end, **SUBSTITUTE))
        for rank in range(world_size)
    ]
    found = []
    for batches in zip(*ranks, strict=True):
        for row in range(micro_batch):
            found += [(batch.keys[row], batch.images[row]) for batch in batches]
    lines = sorted(line for batches in ranks for batch in batches for line in batch.substituted)
    return [found, lines]


@pytest.fixture(scope="module")
def expected(damaged) -> list[tuple]:
    return rows(damaged)


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch"), [*LAYOUTS[1:3], pytest.param(*LAYOUTS[3], marks=pytest.mark.exhaustive)]
)
def test_substitutes_are_the_same_on_every_layout(damaged, expected, world_size, workers, micro_batch):
    found, lines = rows(damaged, 0, world_size, workers, micro_batch)
    assert [key for key, _ in found] == [key for key, _ in expected[0]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, expected[0], strict=True))
    assert lines == expected[1]


def test_and_after_a_resume(damaged, expected):
    start = STEPS_PER_EPOCH - 2
    found, _ = rows(damaged, start, 2, 0, 8)
    assert [key for key, _ in found] == [key for key, _ in expected[0]][start * GLOBAL_BATCH :]


def test_only_damaged_samples_are_replaced_by_sound_ones_of_their_block(shards, damaged, expected):
    index = ShardIndex.open(shards)
    order = LaneOrder(index.shard_lengths, seed=SEED, global_batch=GLOBAL_BATCH, lanes=None, window=WINDOW)
    keys = [parse_sample(raw).key for raw in read_samples(index, np.arange(150))]
    replaced = 0
    for number, (key, image) in enumerate(expected[0]):
        epoch, position = divmod(number, STEPS_PER_EPOCH * GLOBAL_BATCH)
        sample = sample_at(order, epoch, position)
        if sample not in DAMAGED:
            assert key == keys[sample]
            continue
        replaced += 1
        lane, block, _ = order.place(position)
        near = [int(other) for other in order.block(epoch, lane, block) if int(other) not in DAMAGED]
        assert key in [keys[other] for other in near]
        content = parse_sample(read_samples(index, np.array([keys.index(key)]))[0]).image
        crop = order.augmentation_key(epoch, position)
        assert torch.equal(image, augment(decode_rgb(content), crop, DataConfig(), image.shape[-1]))
    assert replaced == len(expected[1])
    assert replaced >= len(DAMAGED)


def test_each_substitution_names_shard_bytes_and_stand_in(expected):
    for line in expected[1]:
        assert "\n" not in line
        assert ".tar, bytes " in line
        assert "stands in for it" in line
    assert any(VICTIM in line for line in expected[1])
    assert any("sample '" in line.split(" stands in")[0].split(": ")[0] for line in expected[1])  # where it is known


def test_by_default_a_damaged_sample_stops_the_run(damaged):
    with pytest.raises(ShardError, match=r"\.tar, bytes \d+-\d+"):
        list(make_loader(damaged, end=STEPS_PER_EPOCH))


def test_a_missing_shard_stops_the_run_all_the_same(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    loader = make_loader(copy, end=STEPS_PER_EPOCH, **SUBSTITUTE)
    (copy / VICTIM).unlink()
    with pytest.raises(ShardError, match=f"{VICTIM}, .*No such file"):
        list(loader)


def test_a_shard_that_holds_nothing_sound_stops_the_run(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    for path in copy.glob("*.tar"):
        overwrite(path, 0, bytes([7]) * path.stat().st_size)
    with pytest.raises(ShardError, match="nothing can stand in"):
        list(make_loader(copy, end=1, **SUBSTITUTE))
