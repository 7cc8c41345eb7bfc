"""A loss or gradient that is not finite on one rank costs its step on all ranks, and nothing else."""

import pytest

from tests.distributed import RankPool
from tests.engine.cases import INITIAL_SCALE, Setting
from tests.engine.poisoning import overflow_without_a_lower_scale, poisoned_trajectory
from tests.engine.trajectory import build_cpu_adam, tolerance

SETTINGS = [
    Setting(stage, precision, clip, accumulation)
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
    for clip, accumulation in ((0.0, 1), (0.5, 2))
    if not (stage == 0 and precision == "fp16")
]
ONE_RANK = [
    Setting(1, "fp32", 0.5, 2), Setting(1, "fp16"), Setting(2, "bf16"), Setting(2, "fp16", 0.5, 2),
]  # fmt: skip
"""Where gradients are updated from where they lie: found to be bad there, and gone with the step."""
OFFLOADED = [
    Setting(stage, precision, 0.5, 2, offload=True) for stage in (1, 2, 3) for precision in ("fp32", "bf16", "fp16")
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_bad_step_is_skipped_by_all_ranks_as_if_it_had_not_been(two_ranks: RankPool, setting: Setting) -> None:
    check(two_ranks, setting)


@pytest.mark.parametrize("setting", ONE_RANK, ids=str)
def test_a_bad_step_of_one_rank_is_skipped_too(one_rank: RankPool, setting: Setting) -> None:
    check(one_rank, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", OFFLOADED, ids=str)
def test_a_bad_step_of_an_offloaded_optimizer_is_skipped_too(two_ranks: RankPool, setting: Setting) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    check(two_ranks, setting)


def check(ranks: RankPool, setting: Setting) -> None:
    for found in ranks.run(poisoned_trajectory, setting):
        assert found["moved"] == []
        assert found["weight_difference"] <= tolerance(setting)
        assert found["skipped"][0] == found["skipped"][1]
        assert found["scale"][0] == found["scale"][1]
        assert found["global_steps"] == 8
        if setting.precision == "fp16":  # a lower scale may help: such steps are DeepSpeed's business
            assert found["bad_steps"] == [0] * 8
        else:
            assert found["bad_steps"] == [1, 1, 2, 2, 3, 3, 3, 3]
            assert found["in_a_row"] == [1, 0, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "options", [{"min_loss_scale": INITIAL_SCALE}, {"loss_scale": float(INITIAL_SCALE)}], ids=["lowest", "fixed"]
)
def test_fp16_overflow_is_bad_where_the_scale_cannot_fall(two_ranks: RankPool, options: dict) -> None:
    for found in two_ranks.run(overflow_without_a_lower_scale, options):
        assert found == [(n, n, INITIAL_SCALE) for n in (1, 2, 3)]
