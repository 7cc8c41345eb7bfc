"""A checkpoint on disk: any slice can be read back, and damage is seen, named and passed over."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.tensors import found_for, write_by_hand
from trainer.checkpoint.find import checkpoints_at, newest_whole
from trainer.checkpoint.manifest import (
    DamagedCheckpoint,
    FileRecord,
    list_checkpoints,
    manifest_digest,
    read_manifest,
    verify,
    write_manifest,
)
from trainer.checkpoint.reader import Checkpoint
from trainer.checkpoint.state_file import MASTER, sha256
from trainer.engine.fragments import even_slice
from trainer.errors import BadInput

WEIGHT = torch.arange(23, dtype=torch.float32)
NOBODY = 65534


def write_checkpoint(root: Path, step: int) -> Path:
    return write_by_hand(root, step, {"w": WEIGHT})


def test_any_slice_is_put_together_from_the_ranks_files(tmp_path):
    checkpoint = Checkpoint(write_checkpoint(tmp_path, 5))
    for start in range(23):
        for length in range(1, 24 - start):
            assert torch.equal(checkpoint.read(MASTER, "w", start, length), WEIGHT[start : start + length])
    assert torch.equal(checkpoint.read("exp_avg", "w", 0, 23), -WEIGHT)


def test_a_missing_element_is_an_error_not_a_zero(tmp_path):
    checkpoint = Checkpoint(write_checkpoint(tmp_path, 5))
    with pytest.raises(DamagedCheckpoint, match="lacks elements from 23"):
        checkpoint.read(MASTER, "w", 20, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 23, 40])
def test_even_slices_cover_everything_once(world_size):
    slices = [even_slice(23, rank, world_size) for rank in range(world_size)]
    assert [i for start, length in slices for i in range(start, start + length)] == list(range(23))


def edit_manifest(directory: Path, change: Callable[[dict], object], *, sign: bool = True) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content | ({"manifest_sha256": manifest_digest(content)} if sign else {})))


def flip(path: Path, position: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def second(directory: Path) -> Path:
    return directory / "rank_00001.safetensors"


DAMAGES = {
    "truncated": (lambda d: second(d).write_bytes(second(d).read_bytes()[:-1]), "bytes, the manifest says"),
    "emptied": (lambda d: second(d).write_bytes(b""), "0 bytes, the manifest says"),
    "flipped byte": (lambda d: flip(second(d)), "rank_00001.safetensors: sha256 differs"),
    "flipped byte in a header": (lambda d: flip(second(d), 20), "rank_00001.safetensors: sha256 differs"),
    "two files swapped": (
        lambda d: (second(d).rename(d / "x"), (d / "rank_00000.safetensors").rename(second(d)),
                   (d / "x").rename(d / "rank_00000.safetensors")),
        "rank_00000.safetensors: sha256 differs",
    ),
    "missing rank": (lambda d: second(d).unlink(), "rank_00001.safetensors: missing"),
    "directory for a file": (lambda d: (second(d).unlink(), second(d).mkdir()), "rank_00001.safetensors"),
    "wrong checksum": (
        lambda d: edit_manifest(d, lambda c: c["files"][second(d).name].update(sha256="0" * 64)), "sha256 differs"
    ),
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), "manifest.json: FileNotFoundError"),
    "manifest empty": (lambda d: (d / "manifest.json").write_text(""), "manifest.json: JSONDecodeError"),
    "manifest cut": (lambda d: (d / "manifest.json").write_text('{"step": 5'), "manifest.json: JSONDecodeError"),
    "manifest not text": (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\x00"), "UnicodeDecodeError"),
    "manifest of lists in lists": (
        lambda d: (d / "manifest.json").write_text("[" * 100_000 + "]" * 100_000), "manifest.json: RecursionError"
    ),
    "manifest of objects in objects": (
        lambda d: (d / "manifest.json").write_text('{"a":' * 100_000 + "0" + "}" * 100_000), "RecursionError"
    ),
    "manifest of another step": (
        lambda d: edit_manifest(d, lambda c: c.update(step=11)), "is of step 11, its folder is named step_00000010"
    ),
    "format version with a flipped bit": (
        lambda d: edit_manifest(d, lambda c: c.update(format_version=3), sign=False), "checksum does not fit"
    ),
    "manifest a list": (lambda d: (d / "manifest.json").write_text("[1]"), "manifest.json: TypeError"),
    "manifest without a key": (lambda d: edit_manifest(d, lambda c: c.pop("shapes")), "manifest.json: shapes: "),
    "manifest of wrong types": (
        lambda d: edit_manifest(d, lambda c: c.update(step="ten")), "manifest.json: step: .*integer"
    ),
    "manifest of wrong types inside": (
        lambda d: edit_manifest(d, lambda c: c["files"].update({second(d).name: 7})), "files.rank_00001.safetensors"
    ),
    "changed manifest": (
        lambda d: edit_manifest(d, lambda c: c.update(frozen_units=1), sign=False), "checksum does not fit"
    ),
    "path out of the directory": (
        lambda d: edit_manifest(d, lambda c: c["files"].update({"../../x": c["files"].pop(second(d).name)})),
        "'../../x' is no name of a rank's file",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_resuming_passes_over_a_damaged_checkpoint_and_names_it(tmp_path, damage, words):
    old, new = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 10)
    damage(new)
    with pytest.raises(DamagedCheckpoint, match=words):
        verify(new)
    warnings = []
    assert found_for(tmp_path, "auto", warnings.append) == old
    assert len(warnings) == 1
    assert str(new) in warnings[0]
    with pytest.raises(BadInput, match=f"--resume.*{new.name}" if (new / "manifest.json").is_file() else "--resume"):
        found_for(tmp_path, str(new), warnings.append)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and no rights of root, which could read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    yield folder
    os.seteuid(user)
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("which", ["manifest.json", "rank_00001.safetensors", "."])
def test_an_unreadable_checkpoint_is_passed_over(as_nobody, which):
    old, new = write_checkpoint(as_nobody, 5), write_checkpoint(as_nobody, 10)
    (new / which).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    warnings = []
    assert found_for(as_nobody, "auto", warnings.append) == old
    assert "Permission denied" in warnings[0]


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111], ids=oct)
def test_checkpoints_that_nobody_can_list_are_an_error_and_no_new_start(as_nobody, mode):
    root = write_checkpoint(as_nobody / "checkpoints", 5).parent
    root.chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    for resume in ("auto", "never"):
        with pytest.raises(BadInput, match=r"checkpoints: cannot be read .Permission denied.; mend that"):
            found_for(root, resume, pytest.fail)
    with pytest.raises(BadInput, match=r"--resume .*: cannot be read .Permission denied.; mend that"):
        found_for(root, str(as_nobody), pytest.fail)


def test_a_folder_above_that_nobody_may_enter_is_no_new_start_either(as_nobody):
    run = write_checkpoint(as_nobody / "run" / "checkpoints", 5).parents[1]
    run.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    with pytest.raises(BadInput, match=r"checkpoints: cannot be read .Permission denied"):
        found_for(run / "checkpoints", "auto", pytest.fail)
    with pytest.raises(BadInput, match=r"--resume .*: cannot be read .Permission denied"):
        found_for(run / "checkpoints", str(run), pytest.fail)


def test_another_format_may_have_no_checksum(tmp_path):
    def make_older(content: dict) -> None:
        content.update(format_version=1)
        del content["manifest_sha256"]

    edit_manifest(write_checkpoint(tmp_path, 10), make_older, sign=False)
    with pytest.raises(BadInput, match=r"format version 1.*use the older program"):
        found_for(tmp_path, "auto", print)


@pytest.mark.parametrize(("version", "words"), [(99, "use the newer program"), (1, "use the older program")])
def test_another_format_is_refused_not_passed_over(tmp_path, version, words):
    write_checkpoint(tmp_path, 5)
    edit_manifest(write_checkpoint(tmp_path, 10), lambda content: content.update(format_version=version))
    with pytest.raises(BadInput, match=f"format version {version}.*{words}"):
        found_for(tmp_path, "auto", print)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(tmp_path):
    flip(second(write_checkpoint(tmp_path, 5)))
    second(write_checkpoint(tmp_path, 10)).unlink()
    with pytest.raises(BadInput, match="none of its 2 checkpoints is whole; mend one, or choose another --output"):
        found_for(tmp_path, "auto", lambda warning: None)


def test_resume_never_does_not_overwrite_and_a_path_must_hold_a_checkpoint(tmp_path):
    assert found_for(tmp_path, "never", print) is None
    directory = write_checkpoint(tmp_path / "run" / "checkpoints", 5)
    with pytest.raises(BadInput, match="already holds step_00000005"):
        found_for(directory.parent, "never", print)
    assert found_for(tmp_path, str(tmp_path / "run"), print) == directory
    assert found_for(tmp_path, str(directory), print) == directory
    with pytest.raises(BadInput, match="no checkpoint there"):
        found_for(tmp_path, str(tmp_path / "elsewhere"), print)


def test_half_renamed_directories_and_a_stale_pointer_mislead_nobody(tmp_path):
    directory = write_checkpoint(tmp_path, 5)
    write_checkpoint(tmp_path, 10).rename(tmp_path / ".step_00000010.tmp")  # whole, but never given its name
    (tmp_path / ".step_00000007.tmp").mkdir()
    (tmp_path / "step_x").mkdir()
    (tmp_path / "latest").write_text("step_00000010")  # names what is not there
    assert list_checkpoints(tmp_path) == [directory]
    assert found_for(tmp_path, "auto", pytest.fail) == directory


def test_the_newest_whole_checkpoint_of_a_run_directory_is_found_past_damaged_ones(tmp_path):
    old, new = (write_checkpoint(tmp_path / "checkpoints", step) for step in (5, 10))
    flip(second(new))
    assert newest_whole(checkpoints_at(tmp_path, "--checkpoint"), lambda warning: None, verify) == old


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"master:w:0": torch.zeros(22)}, "master of w lacks elements from 22"),
        ({"master:w:1": torch.zeros(22)}, "master of w lacks elements from 0"),
        ({"master:w:0": torch.zeros(23), "exp_avg:w:0": torch.zeros(5)}, "exp_avg of w lacks elements from 5"),
        ({"master:w:0": torch.zeros(23, 1)}, "no fp32 part"),
        ({"master:w:0": torch.zeros(23, dtype=torch.float64)}, "no fp32 part"),
        ({"master:v:0": torch.zeros(23)}, "no fp32 part of a tensor in the manifest"),
        ({"w": torch.zeros(23)}, "rank_00000.safetensors"),
    ],
)
def test_a_checkpoint_with_true_checksums_of_a_wrong_content_is_refused_when_opened(tmp_path, tensors, words):
    directory = write_by_hand(tmp_path, 5, {"w": WEIGHT}, world_size=1)
    path = directory / "rank_00000.safetensors"
    save_file(tensors, path)
    record = FileRecord(path.stat().st_size, sha256(path))
    write_manifest(directory, replace(read_manifest(directory), files={path.name: record}))
    verify(directory)
    with pytest.raises(DamagedCheckpoint, match=words):
        Checkpoint(directory)
