"""The order of samples: every sample once, mixed, and a function of the seed alone."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from trainer.data.counter_rng import permutation, splitmix64, splitmix64_array
from trainer.data.order import LaneOrder, default_lanes, nearest_lanes
from trainer.errors import BadInput

SHARD_LENGTHS = np.array([41, 1, 18, 0, 37, 8, 45], dtype=np.int64)  # 150 samples
EPOCHS = (0, 1, 7)


def make_order(**changes) -> LaneOrder:
    settings = {"seed": 5, "global_batch": 16, "lanes": 8, "window": 4} | changes
    return LaneOrder(SHARD_LENGTHS, **settings)


def sample_at(order: LaneOrder, epoch: int, position: int) -> int:
    """The id of the sample at a position of an epoch, 0 <= position < steps_per_epoch · global_batch."""
    lane, block, place = order.place(position)
    return int(order.block(epoch, lane, block)[place])


def epoch_samples(order: LaneOrder, epoch: int) -> list[int]:
    return [sample_at(order, epoch, position) for position in range(order.steps_per_epoch * order.global_batch)]


def test_splitmix64_gives_the_published_numbers():
    # The first two outputs for the seed 1234567; the generator's state grows by the golden gamma between them.
    published = [6457827717110365317, 3203168211198807973]
    states = [1234567, 1234567 + 0x9E3779B97F4A7C15]
    assert [splitmix64(state % 2**64) for state in states] == published
    assert splitmix64_array(np.array(states, dtype=np.uint64)).tolist() == published


def test_permutation_is_one():
    for length in (0, 1, 2, 64, 1000):
        assert sorted(permutation(9, length).tolist()) == list(range(length))


@pytest.mark.parametrize(
    ("global_batch", "lanes", "window"), [(16, 8, 4), (16, 16, 64), (150, 1, 1), (12, 6, 7), (7, 7, 3)]
)
def test_an_epoch_holds_each_sample_once_and_drops_less_than_a_global_batch(global_batch, lanes, window):
    order = make_order(global_batch=global_batch, lanes=lanes, window=window)
    for epoch in EPOCHS:
        samples = epoch_samples(order, epoch)
        assert len(set(samples)) == len(samples) == 150 // global_batch * global_batch
        assert set(samples) <= set(range(150))


def test_each_epoch_has_its_own_order_and_leaves_out_other_samples():
    order = make_order()
    first, second = epoch_samples(order, 0), epoch_samples(order, 1)
    # Of two random orders of 150 samples about one place agrees.
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert set(range(150)) - set(first) != set(range(150)) - set(second)


def test_the_seed_decides_the_order():
    assert epoch_samples(make_order(), 3) == epoch_samples(make_order(), 3)
    assert epoch_samples(make_order(), 3) != epoch_samples(make_order(seed=6), 3)


def test_the_order_of_runs_that_are_under_way_does_not_change():
    """Whoever changes the order breaks resuming for every run begun before: then the number below has to change as
    well."""
    samples = np.array([epoch_samples(make_order(), epoch) for epoch in EPOCHS], dtype=np.int64)
    assert hashlib.sha256(samples.tobytes()).hexdigest()[:16] == "ad0fd20d4a6efa5b"


def test_a_block_is_neighbours_in_at_most_a_few_shards():
    order = make_order()
    starts = np.concatenate([[0], np.cumsum(SHARD_LENGTHS)])
    for lane in range(order.lanes):
        block = np.sort(order.block(0, lane, 1))
        assert len(block) <= order.window
        gaps = [b for a, b in pairwise(block) if b != a + 1]
        assert all(gap in starts for gap in gaps), "a gap within a shard would be another read"


def test_lanes_refill_in_turn():
    order = make_order(lanes=8, window=8, global_batch=16)
    first_blocks = [len(order.block(0, lane, 0)) for lane in range(8)]
    assert sorted(first_blocks) == list(range(1, 9))


def test_steps_map_to_epochs_and_positions():
    order = make_order()  # 9 steps an epoch
    assert order.locate(0) == (0, 0)
    assert order.locate(8) == (0, 8 * 16)
    assert order.locate(9) == (1, 0)
    assert order.locate(25) == (2, 7 * 16)


def test_random_keys_are_distinct_for_every_position_epoch_and_purpose():
    order = make_order()
    positions = np.arange(144, dtype=np.int64)
    masks = [key for epoch in EPOCHS for key in order.mask_keys(epoch, positions).tolist()]
    augmentations = [order.augmentation_key(epoch, position) for epoch in EPOCHS for position in range(144)]
    assert len({*masks, *augmentations}) == 2 * 3 * 144
    assert min(masks) >= 0
    assert order.mask_keys(7, positions[5:6])[0] == masks[2 * 144 + 5]


def test_too_few_samples_and_lanes_that_do_not_fit_are_refused_with_a_way_out():
    with pytest.raises(BadInput, match="150 samples, fewer than one global batch of 151"):
        make_order(global_batch=151, lanes=None)
    with pytest.raises(BadInput, match=r"data\.lanes = 7 does not divide the global batch of 16: try 8"):
        make_order(lanes=7)
    with pytest.raises(BadInput, match="the world size 5 does not divide the global batch of 16: change one"):
        make_order().require_ranks(5)


def test_ranks_that_the_default_lanes_do_not_suit_are_told_what_to_set():
    order = LaneOrder(np.full(10, 10_000), seed=0, global_batch=3072, lanes=None, window=64)
    assert order.lanes == 256
    message = r"256 is not a multiple of the world size 96: in a new run set data\.lanes=192; a run keeps its lanes"
    with pytest.raises(BadInput, match=message):
        order.require_ranks(96)
    LaneOrder(np.full(10, 10_000), seed=0, global_batch=3072, lanes=192, window=64).require_ranks(96)


def test_default_lanes():
    assert [default_lanes(batch) for batch in (1, 96, 256, 4096, 1536, 257)] == [1, 96, 256, 256, 256, 1]
    assert nearest_lanes(1536, 6, 256) == 192
    assert nearest_lanes(16, 1, 7) == 8
