"""Fragments and resume state are the whole state: a run continued from them is the uninterrupted run."""

import numpy as np
import pytest

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.resumption import Outcome, SavedState, coverage, resume, train_and_save
from tests.engine.trajectory import build_cpu_adam

SETTINGS = [
    Setting(stage, precision, clip=0.5)
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
    if not (stage == 0 and precision == "fp16")
]
BETWEEN_FREEZES, AFTER_ALL_FREEZES = 3, 6


def largest_difference(a: Outcome, b: Outcome) -> float:
    return max(float(np.abs(a.weights[name] - b.weights[name]).max()) for name in b.weights)


@pytest.mark.parametrize(
    ("setting", "save_before"),
    [(setting, BETWEEN_FREEZES) for setting in SETTINGS]
    + [(setting, AFTER_ALL_FREEZES) for setting in SETTINGS if setting.precision == "bf16"],
    ids=str,
)
def test_resume_across_freezes_is_bit_exact(two_ranks: RankPool, setting: Setting, save_before: int) -> None:
    runs = two_ranks.run(train_and_save, setting, save_before)
    resumed = two_ranks.run(resume, setting, runs[0][0])
    for (_, uninterrupted), again in zip(runs, resumed, strict=True):
        assert again.losses == uninterrupted.losses
        assert largest_difference(again, uninterrupted) == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resume_of_an_offloaded_optimizer_is_exact_to_the_last_bits(two_ranks: RankPool, stage: int) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    setting = Setting(stage, "fp32", offload=True)
    runs = two_ranks.run(train_and_save, setting, BETWEEN_FREEZES)
    resumed = two_ranks.run(resume, setting, runs[0][0])
    for (_, uninterrupted), again in zip(runs, resumed, strict=True):
        # 0 where measured; but the C++ op keeps a running product for bias correction, which a new one starts anew
        assert largest_difference(again, uninterrupted) <= 1e-6


@pytest.fixture(scope="module")
def saved_by_two_ranks(two_ranks: RankPool) -> tuple[SavedState, Outcome]:
    return two_ranks.run(train_and_save, Setting(2, "fp32"), BETWEEN_FREEZES)[0]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_resume_at_another_stage_is_exact_to_rounding(
    two_ranks: RankPool, saved_by_two_ranks: tuple[SavedState, Outcome], stage: int
) -> None:
    saved, uninterrupted = saved_by_two_ranks
    for again in two_ranks.run(resume, Setting(stage, "fp32"), saved):
        assert largest_difference(again, uninterrupted) <= 1e-6  # order of reduction


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_on_fewer_ranks_is_exact_to_rounding(
    one_rank: RankPool, saved_by_two_ranks: tuple[SavedState, Outcome], stage: int
) -> None:
    saved, uninterrupted = saved_by_two_ranks
    (again,) = one_rank.run(resume, Setting(stage, "fp32", accumulation=2), saved)
    assert largest_difference(again, uninterrupted) <= 1e-6  # order of reduction


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_owned_fragments_cover_every_trainable_element_once(two_ranks: RankPool, stage: int) -> None:
    for sizes in two_ranks.run(coverage, Setting(stage, "bf16")):
        assert sizes
        assert all(covered == size for covered, size in sizes.values())
