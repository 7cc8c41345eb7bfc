"""The engine's promise: freezing under ZeRO is plain AdamW that drops the frozen parameters."""

import pytest

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.trajectory import MATRIX, OFFLOADED, build_cpu_adam, tolerance, trajectory


@pytest.mark.parametrize("setting", MATRIX, ids=str)
def test_training_through_freezes_equals_plain_adamw(two_ranks: RankPool, setting: Setting) -> None:
    check(two_ranks, setting)


@pytest.mark.parametrize("setting", OFFLOADED, ids=str)
def test_offloaded_training_through_freezes_equals_plain_adamw(two_ranks: RankPool, setting: Setting) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    check(two_ranks, setting)


def check(ranks: RankPool, setting: Setting) -> None:
    for found in ranks.run(trajectory, setting):
        assert found["weight_difference"] <= tolerance(setting)
        assert found["loss_difference"] <= 4 * tolerance(setting)
        assert found["frozen_units_moved"] == []
        assert found["bytes_measured"] == found["bytes_expected"] == found["bytes_reported"]
        skipped, expected_skipped = found["skipped"]
        scale, expected_scale = found["scale"]
        assert (skipped, scale) == (expected_skipped, expected_scale)
        assert (skipped > 2) == (setting.precision == "fp16")  # the first freeze comes before any applied update
