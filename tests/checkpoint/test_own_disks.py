"""Checkpoints on the machines' own disks: saved in parts everywhere or nowhere, and what a part says of itself."""

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.own_disks import (
    FIRST,
    SECOND,
    STEP_5,
    disks,
    files,
    on,
    resume,
    save_counts,
    save_on_a_disk_that_is_full,
    save_while,
)
from tests.checkpoint.tensors import require_counted
from tests.distributed import RankPool
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.find import checkpoints_at, newest_whole
from trainer.checkpoint.manifest import (
    DamagedCheckpoint,
    ScatteredCheckpoint,
    read_manifest,
    verify,
    write_manifest,
)
from trainer.checkpoint.reader import Checkpoint
from trainer.errors import BadInput
from trainer.pretrained import load_pretrained


def test_each_machine_gets_the_whole_manifest_and_the_files_of_its_own_ranks(
    three_ranks: RankPool, tmp_path: Path
) -> None:
    three_ranks.run(save_counts, disks(tmp_path, "abb"), [5])
    a, b = files(on(tmp_path, "a")), files(on(tmp_path, "b"))
    third = "rank_00002.safetensors"
    assert a.keys() == {"latest", f"{STEP_5}/manifest.json", f"{STEP_5}/{FIRST}"}
    assert b.keys() == {"latest", f"{STEP_5}/manifest.json", f"{STEP_5}/{SECOND}", f"{STEP_5}/{third}"}
    assert a[f"{STEP_5}/manifest.json"] == b[f"{STEP_5}/manifest.json"]
    manifest = read_manifest(on(tmp_path, "a") / STEP_5)
    assert manifest.hosts == {FIRST: "node-a", SECOND: "node-b", third: "node-b"}
    assert manifest.files.keys() == manifest.hosts.keys()


def test_on_a_shared_folder_nothing_is_said_of_machines(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "aa"), [5])
    assert "hosts" not in json.loads((on(tmp_path, "a") / STEP_5 / "manifest.json").read_text())


def test_every_machine_deletes_what_is_not_kept(two_ranks: RankPool, tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, keep_every=4)
    left = two_ranks.run(save_counts, disks(tmp_path, "ab"), [2, 4, 6, 7, 9], 3001, config)
    assert left == [["latest", "step_00000004", "step_00000007", "step_00000009"]] * 2
    assert (on(tmp_path, "b") / "latest").read_text() == "step_00000009"


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("what", ["_make_empty", "_write_rank_file", "_complete", "_give_name"])
def test_what_fails_on_one_machine_fails_on_all_and_costs_no_earlier_checkpoint(
    two_ranks: RankPool, tmp_path: Path, what: str, victim: int
) -> None:
    roots = disks(tmp_path, "ab")
    two_ranks.run(save_counts, roots, [1])
    before = [files(on(tmp_path, machine)) for machine in "ab"]
    for error, left in two_ranks.run(save_while, roots, what, victim, 2):
        assert (
            f"step_00000002 not saved, earlier ones are intact: rank {victim} on node-{'ab'[victim]}: the disk fail"
            in error
        )
        assert left == ["latest", "step_00000001"]
    assert [files(on(tmp_path, machine)) for machine in "ab"] == before


def test_a_step_that_is_saved_again_and_fails_on_one_machine_is_there_as_before(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [1, 2])
    before = [files(on(tmp_path, machine)) for machine in "ab"]
    (error, left), _ = two_ranks.run(save_while, disks(tmp_path, "ab"), "_give_name", 1, 2)
    assert "not saved" in error
    assert left == ["latest", "step_00000001", "step_00000002"]
    assert [files(on(tmp_path, machine)) for machine in "ab"] == before


def test_nothing_older_goes_on_any_machine_while_the_newer_one_may_not_be_safe_on_another(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    config = CheckpointConfig(keep_last=1)
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [1], 3001, config)
    outcomes = two_ranks.run(save_while, disks(tmp_path, "ab"), "sync_directory", 1, 2, config)
    assert outcomes == [("saved", ["latest", "step_00000001", "step_00000002"])] * 2


@pytest.mark.parametrize("notice_beforehand", [True, False])
def test_a_disk_that_is_full_on_one_machine_costs_no_earlier_checkpoint_on_any(
    two_ranks: RankPool, tmp_path: Path, small_disk: Path, notice_beforehand: bool
) -> None:
    roots = [*disks(tmp_path, "a"), str(small_disk / "checkpoints")]
    for errors, left in two_ranks.run(save_on_a_disk_that_is_full, roots, notice_beforehand):
        assert [bool(error) for error in errors] == [False, True, False]
        assert f"rank 1 on node-disk: {small_disk}/checkpoints/.step_00000002.tmp" in errors[1]
        assert "the checkpoint needs 1,500,0" in errors[1]  # on that disk: half of it
        assert left == [
            ["latest", "step_00000001"],
            ["latest", "step_00000001"],
            ["latest", "step_00000001", "step_00000003"],
        ]
    assert [outcome.step for outcome in two_ranks.run(resume, roots)] == [3, 3]


def test_who_looks_at_one_machine_alone_is_told_where_the_other_files_are(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5, 10])
    directory = on(tmp_path, "a") / "step_00000010"
    words = r"1 of its 2 files not here but on other machines' own disks \(rank_00001.safetensors of node-b\): resume"
    for look in (verify, Checkpoint):
        with pytest.raises(ScatteredCheckpoint, match=f"step_00000010: {words}"):
            look(directory)
    said: list[str] = []
    with pytest.raises(ScatteredCheckpoint, match=f"step_00000010: {words}"):
        newest_whole(checkpoints_at(tmp_path / "a" / "run", "--checkpoint"), said.append, verify)
    assert [line.split(":")[0] for line in said] == ["passing over a checkpoint that is not all here"] * 2
    with pytest.raises(BadInput, match=f"pre-trained weights: .*step_00000010: {words}"):
        load_pretrained(tmp_path / "a" / "run")
    shutil.copy(on(tmp_path, "b") / "step_00000010" / SECOND, directory)  # copied together, as the words say
    verify(directory)
    require_counted(directory)


def test_a_file_that_is_missing_from_a_shared_folder_is_damage(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "aa"), [5])
    directory = on(tmp_path, "a") / STEP_5
    (directory / SECOND).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{SECOND}: missing") as raised:
        verify(directory)
    assert not isinstance(raised.value, ScatteredCheckpoint)


def test_a_manifest_that_names_machines_keeps_its_checksum(two_ranks: RankPool, tmp_path: Path) -> None:
    two_ranks.run(save_counts, disks(tmp_path, "ab"), [5])
    directory = on(tmp_path, "a") / STEP_5
    before = (directory / "manifest.json").read_bytes()
    write_manifest(directory, read_manifest(directory))
    assert (directory / "manifest.json").read_bytes() == before
