"""A checkpoint on disk is the whole state: a run continued from it is the uninterrupted run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.engine.resumption import Outcome, coverage, resume, save_that_one_rank_cannot_write, train_and_save
from tests.engine.trajectory import build_cpu_adam
from trainer.checkpoint.manifest import list_checkpoints, verify
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER

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
def test_resume_across_freezes_is_bit_exact(
    two_ranks: RankPool, setting: Setting, save_before: int, tmp_path: Path
) -> None:
    check(two_ranks, setting, save_before, str(tmp_path / "checkpoints"))


@pytest.mark.parametrize("setting", [Setting(1, "fp16", clip=0.5), Setting(2, "bf16", accumulation=2)], ids=str)
def test_resume_across_freezes_on_one_rank_is_bit_exact(one_rank: RankPool, setting: Setting, tmp_path: Path) -> None:
    check(one_rank, setting, BETWEEN_FREEZES, str(tmp_path / "checkpoints"))


def check(ranks: RankPool, setting: Setting, save_before: int, root: str) -> None:
    runs = ranks.run(train_and_save, setting, save_before, root)
    resumed = ranks.run(resume, setting, root)
    for uninterrupted, again in zip(runs, resumed, strict=True):
        assert again.losses == uninterrupted.losses
        assert largest_difference(again, uninterrupted) == 0
    # the frozen weights are kept in fp32 exactly, whatever the precision of training, also by the resumed run
    for directory in (list_checkpoints(Path(root))[0], list_checkpoints(Path(root + "_again"))[0]):
        verify(directory)
        checkpoint = Checkpoint(directory)
        assert runs[0].masters_at_freeze
        for (_, name), master in runs[0].masters_at_freeze.items():
            assert torch.equal(checkpoint.read(MASTER, name, 0, len(master)), torch.from_numpy(master))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resume_of_an_offloaded_optimizer_is_exact_to_the_last_bits(
    two_ranks: RankPool, stage: int, tmp_path: Path
) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    setting, root = Setting(stage, "fp32", offload=True), str(tmp_path / "checkpoints")
    runs = two_ranks.run(train_and_save, setting, BETWEEN_FREEZES, root)
    resumed = two_ranks.run(resume, setting, root)
    for uninterrupted, again in zip(runs, resumed, strict=True):
        # 0 where measured; but the C++ op keeps a running product for bias correction, which a new one starts anew
        assert largest_difference(again, uninterrupted) <= 1e-6


@pytest.fixture(scope="module")
def saved_by_two_ranks(two_ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outcome]:
    root = str(tmp_path_factory.mktemp("run") / "checkpoints")
    return root, two_ranks.run(train_and_save, Setting(2, "fp32"), BETWEEN_FREEZES, root)[0]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_resume_at_another_stage_is_exact_to_rounding(
    two_ranks: RankPool, saved_by_two_ranks: tuple[str, Outcome], stage: int
) -> None:
    root, uninterrupted = saved_by_two_ranks
    for again in two_ranks.run(resume, Setting(stage, "fp32"), root):
        assert largest_difference(again, uninterrupted) <= 1e-6  # order of reduction


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_on_fewer_ranks_is_exact_to_rounding(
    one_rank: RankPool, saved_by_two_ranks: tuple[str, Outcome], stage: int
) -> None:
    root, uninterrupted = saved_by_two_ranks
    (again,) = one_rank.run(resume, Setting(stage, "fp32", accumulation=2), root)
    assert largest_difference(again, uninterrupted) <= 1e-6  # order of reduction


def test_a_save_that_fails_on_one_rank_fails_on_all_and_leaves_the_earlier_one(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    for message, left in two_ranks.run(save_that_one_rank_cannot_write, str(root)):
        assert "earlier ones are intact: rank 1" in message
        assert left == ["latest", "step_00000001"]
    verify(root / "step_00000001")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_owned_fragments_cover_every_trainable_element_once(two_ranks: RankPool, stage: int) -> None:
    for sizes in two_ranks.run(coverage, Setting(stage, "bf16")):
        assert sizes
        assert all(covered == size for covered, size in sizes.values())
