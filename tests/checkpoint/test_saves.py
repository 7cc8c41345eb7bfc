"""Saves in the background, on two real ranks: what is on disk is the state of the save, whatever training did since."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from tests.checkpoint.saving import (
    save_counts,
    save_on_a_disk_that_fills_up,
    save_twice_and_train_on,
    save_while_housekeeping_fails,
    verify_and_count,
)
from tests.checkpoint.tensors import found_for, require_counted, write_by_hand
from tests.distributed import RankPool
from tests.engine.cases import Setting
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.manifest import list_checkpoints, verify


def test_a_save_holds_the_state_of_its_step_though_training_goes_on(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, str(tmp_path), [1, 2, 3], 3_000_001, CheckpointConfig(keep_last=9))
    assert len(list_checkpoints(tmp_path)) == 3
    for directory in list_checkpoints(tmp_path):
        verify(directory)
        require_counted(directory)


@pytest.mark.parametrize("setting", [Setting(1, "bf16"), Setting(3, "fp32")], ids=str)
def test_a_background_save_writes_the_bytes_of_one_that_training_waits_for(
    two_ranks: RankPool, tmp_path: Path, setting: Setting
) -> None:
    assert two_ranks.run(save_twice_and_train_on, setting, str(tmp_path)) == [1, 1]
    for waiting in sorted((tmp_path / "waiting" / "step_00000002").iterdir()):
        background = tmp_path / "background" / "step_00000002" / waiting.name
        assert hashlib.sha256(waiting.read_bytes()).digest() == hashlib.sha256(background.read_bytes()).digest()


def test_the_newest_stay_and_the_multiples_stay_for_ever(two_ranks: RankPool, tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, keep_every=4)
    (left, _) = two_ranks.run(save_counts, str(tmp_path), [2, 4, 6, 7, 8, 10, 11], 100, config)
    assert left == ["latest", "step_00000004", "step_00000008", "step_00000010", "step_00000011"]
    assert (tmp_path / "latest").read_text() == "step_00000011"


def test_what_a_killed_run_left_half_written_is_cleared_by_the_next_save(two_ranks: RankPool, tmp_path: Path) -> None:
    for name in (".step_00000003.tmp", ".step_00000003.replaced.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank_00000.safetensors").write_bytes(b"half")
    (left, _) = two_ranks.run(save_counts, str(tmp_path), [5], 100, CheckpointConfig())
    assert left == ["latest", "step_00000005"]


def test_what_cannot_be_cleared_and_is_not_in_the_way_fails_no_save(two_ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / ".step_00000003.tmp").write_bytes(b"no folder")
    (left, _) = two_ranks.run(save_counts, str(tmp_path), [5], 100, CheckpointConfig())
    assert left == [".step_00000003.tmp", "latest", "step_00000005"]


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("sync_directory", ["step_00000001", "step_00000002"]),  # nothing older goes while the newer might not be safe
        ("write_text", ["step_00000002"]),
        ("list_checkpoints", ["step_00000001", "step_00000002"]),
    ],
)
def test_a_checkpoint_that_has_its_name_is_never_told_as_not_saved(
    two_ranks: RankPool, tmp_path: Path, what: str, left: list[str]
) -> None:
    assert two_ranks.run(save_while_housekeeping_fails, str(tmp_path), what)[0] == (None, False, left)
    require_counted(tmp_path / "step_00000002")


def test_a_step_that_is_saved_again_replaces_the_first(two_ranks: RankPool, tmp_path: Path) -> None:
    write_by_hand(tmp_path, 5, {"trained": torch.zeros(7)})
    (left, _) = two_ranks.run(save_counts, str(tmp_path), [5], 100, CheckpointConfig())
    assert left == ["latest", "step_00000005"]
    require_counted(tmp_path / "step_00000005")


def test_ranks_divide_the_reading_of_a_checkpoint_and_agree_about_damage(two_ranks: RankPool, tmp_path: Path) -> None:
    directory = write_by_hand(tmp_path, 5, {"w": torch.arange(50.0)}, world_size=5)
    (first, read), (second, read_by_second) = two_ranks.run(verify_and_count, str(tmp_path))
    assert first == second == "whole"
    assert sorted(read + read_by_second) == [f"rank_{rank:05d}.safetensors" for rank in range(5)]
    (directory / "rank_00003.safetensors").write_bytes(b"short")
    outcomes = [outcome for outcome, _ in two_ranks.run(verify_and_count, str(tmp_path))]
    assert outcomes[0] == outcomes[1]
    assert "rank_00003.safetensors: 5 bytes, the manifest says" in outcomes[0]


@pytest.mark.parametrize("on_error", ["stop", "continue"])
@pytest.mark.parametrize("notice_beforehand", [True, False])
def test_a_disk_that_fills_up_costs_no_earlier_checkpoint(
    two_ranks: RankPool, small_disk: Path, on_error: str, notice_beforehand: bool
) -> None:
    outcomes = two_ranks.run(save_on_a_disk_that_fills_up, str(small_disk), on_error, notice_beforehand)
    for outcome in outcomes:
        assert [bool(error) for error in outcome.errors] == [False, True, False]
        assert outcome.errors == outcomes[0].errors
        assert outcome.on_disk == [
            ["latest", "step_00000001"],
            ["latest", "step_00000001"],
            ["latest", "step_00000001", "step_00000003"],
        ]
        # asked for by each rank; the run may not end well after that unless it was told to go on
        assert len(outcome.asked_to_stop) == (on_error == "stop")
        assert outcome.failed == [False, True, on_error == "stop"]
    words = "step_00000002 not saved, earlier ones are intact: rank .*.step_00000002.tmp.*the checkpoint needs 3,000,"
    assert re.search(words, outcomes[0].errors[1])
    for directory in list_checkpoints(small_disk / "checkpoints"):
        verify(directory)
        require_counted(directory)
    assert found_for(small_disk / "checkpoints", "auto", pytest.fail).name == "step_00000003"
