"""The engine's promise: freezing under ZeRO is plain AdamW that drops the frozen parameters."""

import pytest

from tests.covering import slow_and_exhaustive
from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.trajectory import MATRIX, OFFLOADED, build_cpu_adam, tolerance, trajectory

FAST = {
    *((stage, precision, 0.0, 1) for stage in (0, 2) for precision in ("fp32", "bf16", "fp16")),
    *((stage, precision, 0.5, 2) for stage in (1, 3) for precision in ("fp32", "bf16", "fp16")),
    (2, "bf16", 0.0, 2), (2, "bf16", 0.5, 1), (3, "bf16", 0.0, 2),
}  # fmt: skip
"""Every stage and precision once, and what most runs use more often."""


def shows(setting: Setting) -> list[tuple]:
    """What a setting has that others have, too."""
    return [
        (setting.stage, setting.precision),
        (setting.stage, setting.clip),
        (setting.stage, setting.accumulation),
        (setting.clip, setting.accumulation),
    ]


ONE_RANK = [
    Setting(1, "fp32"), Setting(1, "bf16", accumulation=2), Setting(2, "fp32", accumulation=2),
    Setting(2, "bf16", clip=0.5), Setting(2, "fp16", clip=0.5), Setting(3, "fp32"),
]  # fmt: skip
"""Where gradients are updated from where they lie, and the stage where they are not."""


def rows(settings: list[Setting], fast: set[tuple]) -> list:
    def is_fast(setting: Setting) -> bool:
        return (setting.stage, setting.precision, setting.clip, setting.accumulation) in fast

    return slow_and_exhaustive(settings, shows, is_fast)


@pytest.mark.parametrize("setting", rows(MATRIX, FAST))
def test_training_through_freezes_equals_plain_adamw(two_ranks: RankPool, setting: Setting) -> None:
    check(two_ranks, setting)


@pytest.mark.parametrize("setting", ONE_RANK, ids=str)
def test_training_on_one_rank_through_freezes_equals_plain_adamw(one_rank: RankPool, setting: Setting) -> None:
    check(one_rank, setting)


@pytest.mark.parametrize("setting", rows(OFFLOADED, set()))
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
