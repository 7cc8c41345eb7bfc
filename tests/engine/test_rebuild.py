"""A freeze frees memory at once and never needs a second copy of what trains on."""

import re

import pytest

from tests.distributed import RankPool
from tests.engine import rebuilds
from tests.engine.cases import Setting
from tests.engine.trajectory import build_cpu_adam

COLLECTIVES = 1024
"""Bytes that the ranks' agreement needs for a moment: they pickle a few numbers."""


@pytest.mark.parametrize(
    "setting",
    [
        Setting(0, "fp32"),
        Setting(0, "bf16"),
        Setting(1, "fp32"),
        Setting(1, "bf16"),
        Setting(2, "fp32"),
        Setting(2, "bf16"),
        Setting(2, "fp16"),
        Setting(3, "fp32"),
        Setting(3, "bf16"),
        pytest.param(Setting(1, "fp16"), marks=pytest.mark.slow),
        pytest.param(Setting(3, "fp16"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_freeze_raises_memory_by_less_than_one_units_state(two_ranks: RankPool, setting: Setting) -> None:
    for by_freeze in two_ranks.run(rebuilds.memory_of_freezes, setting):
        assert len(by_freeze) == rebuilds.FREEZES
        for found in by_freeze:
            assert found.rise <= found.unit_state + COLLECTIVES
            kept = (
                found.optimizer_bytes // 3 if setting == Setting(0, "fp32") else 0
            )  # there the masters are the weights
            assert found.freed >= found.optimizer_bytes - kept - COLLECTIVES


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_freeze_of_an_offloaded_optimizer_raises_memory_by_less_than_one_units_state(
    two_ranks: RankPool, stage: int
) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    for by_freeze in two_ranks.run(rebuilds.memory_of_freezes, Setting(stage, "bf16", offload=True)):
        for found in by_freeze:
            assert found.rise <= found.unit_state + COLLECTIVES


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (3, "bf16")])
def test_masters_come_over_from_a_constructor_that_is_not_understood(
    two_ranks: RankPool, stage: int, precision: str
) -> None:
    setting = Setting(stage, precision, clip=0.5)
    (unchanged, warned), (other_unchanged, silent) = two_ranks.run(
        rebuilds.rebuilding_without_help_changes_nothing, setting
    )
    assert unchanged
    assert other_unchanged
    assert len(warned) == 2  # rebuilds
    assert all("put them elsewhere than expected" in message for message in warned)
    assert silent == []


def test_consecutive_shards_stay_where_they_are(one_rank: RankPool) -> None:
    assert one_rank.run(rebuilds.one_buffer_of_parts) == [(True, True)]


def test_shards_of_two_buffers_are_not_taken_for_one(one_rank: RankPool) -> None:
    assert one_rank.run(rebuilds.one_buffer_of_neighbours) == [(True, True)]


def test_ranks_with_different_micro_batches_are_refused_before_they_hang(two_ranks: RankPool) -> None:
    for message in two_ranks.run(rebuilds.freeze_with_a_micro_batch_of_ones_own):
        found = re.fullmatch(r"the ranks have different micro-batches: \[(\d+), (\d+)\]", message)
        assert found
        assert int(found[2]) == 2 * int(found[1])
