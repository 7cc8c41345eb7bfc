"""What the machines of a run have on disks of their own is put together when it goes on, on whatever machines."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.own_disks import (
    FIRST,
    SECOND,
    STEP_5,
    disks,
    files,
    gather_what_changes_meanwhile,
    on,
    resume,
    resume_engine,
    save_counts,
    train_and_save,
)
from tests.checkpoint.test_checkpoint_files import flip
from tests.distributed import RankPool
from tests.engine.cases import Setting
from trainer.checkpoint.manifest import list_checkpoints, verify
from trainer.checkpoint.reader import Checkpoint


@pytest.mark.parametrize("setting", [Setting(1, "fp32"), Setting(3, "fp32")], ids=str)
def test_every_tensor_is_back_on_the_same_machines_on_more_ranks_and_with_a_new_machine(
    two_ranks: RankPool, three_ranks: RankPool, tmp_path: Path, setting: Setting
) -> None:
    saved = two_ranks.run(train_and_save, setting, disks(tmp_path, "ab"))[0]
    assert len({kind for kind, _ in saved}) == 3
    for machine in "ab":
        shutil.copytree(tmp_path / machine, tmp_path / "kept" / machine)
    for pool, machines in ((two_ranks, "ab"), (three_ranks, "abb"), (three_ranks, "abc"), (three_ranks, "cba")):
        for machine in "abc":  # as they were when they had saved
            shutil.rmtree(tmp_path / machine, ignore_errors=True)
            if machine != "c":
                shutil.copytree(tmp_path / "kept" / machine, tmp_path / machine)
        for loaded in pool.run(resume_engine, setting, disks(tmp_path, machines)):
            assert loaded.keys() == saved.keys()
            assert all(np.array_equal(loaded[key], saved[key]) for key in saved), machines
        for machine in machines:
            verify(list_checkpoints(on(tmp_path, machine))[0])


def test_what_was_gathered_is_whole_on_each_machine_alone(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    for outcome in two_ranks.run(resume, disks(tmp_path, "ab")):
        assert outcome.step == 5
        assert "gathering step_00000005: not all 2 storages have 2 files of 0." in outcome.said[0]
        assert outcome.said[-1].startswith("gathered step_00000005 in ")
    assert files(on(tmp_path, "a")) == files(on(tmp_path, "b"))
    shutil.rmtree(tmp_path / "a")
    for outcome in two_ranks.run(resume, disks(tmp_path, "bb")):  # a machine is dropped
        assert (outcome.step, outcome.said) == (5, [])  # and nothing is to be gathered


def test_a_gathering_that_was_broken_off_is_taken_up(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    a, b = (on(tmp_path, machine) / STEP_5 for machine in "ab")
    shutil.copy(a / FIRST, b)  # that much had come
    (a / f"{SECOND}.tmp").write_bytes(b"half")
    assert "1 files" in two_ranks.run(resume, disks(tmp_path, "ab"))[0].said[0]
    assert sorted(path.name for path in a.iterdir()) == ["manifest.json", FIRST, SECOND]


def test_a_machine_that_is_missing_is_named_and_the_newest_that_is_complete_is_taken(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    two_ranks.run(resume, disks(tmp_path, "ab"))
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [10])
    for outcome in two_ranks.run(resume, disks(tmp_path, "ac")):
        assert outcome.step == 5
        assert outcome.said[0].startswith("passing over a checkpoint that is not all here: ")
        assert (
            "step_00000010: 1 of its 2 files not here but on other machines' own disks (rank_00001.safetensors of "
            "node-b): resume the run with those machines, which gathers them, or copy the files together"
            in outcome.said[0]
        )
    verify(on(tmp_path, "c") / STEP_5)
    assert two_ranks.run(resume, disks(tmp_path, "ba"))[0].step == 10  # it is back, and another rank's


def test_a_file_that_its_own_machine_lacks_is_not_sought_elsewhere(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5, 10])
    (on(tmp_path, "b") / "step_00000010" / SECOND).unlink()
    for outcome in two_ranks.run(resume, disks(tmp_path, "ab")):
        assert outcome.step == 5
        assert f"step_00000010: {SECOND} is not on node-b either: the run ended while it saved that" in outcome.said[0]


def test_a_run_of_which_no_checkpoint_is_complete_is_not_started_anew(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5, 10])
    before = files(on(tmp_path, "b"))
    for outcome in two_ranks.run(resume, disks(tmp_path, "cb")):
        assert outcome.step is None
        assert "step_00000010: 1 of its 2 files not here but on other machines' own disks" in outcome.refusal
        assert "rank_00000.safetensors of node-a" in outcome.refusal
    assert files(on(tmp_path, "b")) == before


def test_a_file_that_is_damaged_where_it_alone_is_costs_its_checkpoint(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5, 10])
    flip(on(tmp_path, "b") / "step_00000010" / SECOND)
    for outcome in two_ranks.run(resume, disks(tmp_path, "ab")):
        assert outcome.step == 5
        assert "passing over a damaged checkpoint: rank 1 on node-b: " in outcome.said[0]
        assert f"{SECOND}: sha256 differs from the manifest's" in outcome.said[0]


@pytest.mark.parametrize("damaged", [SECOND, "manifest.json"])
def test_a_damaged_copy_is_replaced_by_a_whole_one(two_ranks: RankPool, tmp_path: Path, damaged: str) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    two_ranks.run(resume, disks(tmp_path, "ab"))
    flip(on(tmp_path, "b") / STEP_5 / damaged)
    for outcome in two_ranks.run(resume, disks(tmp_path, "ab")):
        assert outcome.step == 5
        assert "a copy is damaged, another storage has it whole: " in outcome.said[0]
        assert damaged in outcome.said[0]
    verify(on(tmp_path, "b") / STEP_5)


def test_a_file_that_does_not_arrive_as_it_was_is_not_taken(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    refusal = (
        f"{on(tmp_path, 'a') / STEP_5 / SECOND}: cannot be gathered (what rank 1 on node-b sent has another sha256 "
        "than the manifest says): mend that, or leave this machine out"
    )
    assert two_ranks.run(gather_what_changes_meanwhile, disks(tmp_path, "ab")) == [refusal] * 2
    assert sorted(path.name for path in (on(tmp_path, "a") / STEP_5).iterdir()) == ["manifest.json", FIRST]


def test_of_a_step_that_was_taken_twice_the_one_that_is_complete_counts(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5], 3001)
    shutil.rmtree(tmp_path / "a")
    two_ranks.run(save_counts, disks(tmp_path, "aa"), [5], 7001)  # machine b was left out when it was taken again
    assert [outcome.step for outcome in two_ranks.run(resume, disks(tmp_path, "ba"))] == [5, 5]
    for machine in "ab":
        assert Checkpoint(on(tmp_path, machine) / STEP_5).numel("trained") == 7001
    (aside,) = on(tmp_path, "b").glob("set_aside_step_00000005_*")
    assert (aside / SECOND).is_file()


def test_a_machine_without_room_is_named_before_anything_is_sent(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    before = [files(on(tmp_path, machine)) for machine in "ab"]
    needed = (on(tmp_path, "a") / STEP_5 / FIRST).stat().st_size
    for outcome in two_ranks.run(resume, disks(tmp_path, "ab"), True, needed - 1):
        assert outcome.step is None
        assert outcome.refusal == (
            f"rank 1 on node-b: {on(tmp_path, 'b') / STEP_5}: no room to gather it ({needed:,} bytes are needed, "
            f"{needed - 1:,} are free): make room, or leave this machine out"
        )
    assert [files(on(tmp_path, machine)) for machine in "ab"] == before
    assert two_ranks.run(resume, disks(tmp_path, "ab"), True, needed)[0].step == 5


def test_a_disk_that_is_full_though_it_did_not_look_so_stops_all_ranks_with_one_line(
    two_ranks: RankPool, tmp_path: Path, small_disk: Path
) -> None:
    roots = [*disks(tmp_path, "a"), str(small_disk / "checkpoints")]
    two_ranks.run(save_counts, roots, [5], 250_000)  # a file of 1.5 MB on each
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**20))
    for outcome in two_ranks.run(resume, roots, True, None, True):
        assert outcome.refusal == (
            f"rank 1 on node-disk: {small_disk}/checkpoints/{STEP_5}/{FIRST}: cannot be gathered (No space left on "
            "device): mend that, or leave this machine out"
        )
    assert sorted(path.name for path in (small_disk / "checkpoints" / STEP_5).iterdir()) == ["manifest.json", SECOND]
    (small_disk / "filler").unlink()
    assert [outcome.step for outcome in two_ranks.run(resume, roots)] == [5, 5]
