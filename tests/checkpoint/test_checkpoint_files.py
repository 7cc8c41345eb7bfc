"""A checkpoint on disk: any slice can be read back, and damage is seen and named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trainer.checkpoint.manifest import DamagedCheckpoint, Manifest, list_checkpoints, sha256, verify, write_manifest
from trainer.checkpoint.reader import Checkpoint, find_checkpoint
from trainer.checkpoint.writer import MASTER, tensor_key
from trainer.engine.fragments import even_slice
from trainer.errors import BadInput

WEIGHT = torch.arange(23, dtype=torch.float32)


def write_checkpoint(root, step, world_size=3):
    """One parameter of 23 elements, cut over the ranks as ZeRO would."""
    directory = root / f"step_{step:08d}"
    directory.mkdir(parents=True)
    files = {}
    for rank in range(world_size):
        start, length = even_slice(WEIGHT.numel(), rank, world_size)
        name = f"rank_{rank:05d}.safetensors"
        part = WEIGHT[start : start + length].clone()
        save_file({tensor_key(MASTER, "w", start): part, tensor_key("exp_avg", "w", start): -part}, directory / name)
        files[name] = {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
    write_manifest(
        directory,
        Manifest(step, 0, world_size, 1, "fp32", {}, "hash", {}, {"w": [23]}, files),
    )
    return directory


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


def _truncate(directory):
    file = directory / "rank_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(directory):
    file = directory / "rank_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _remove_rank(directory):
    (directory / "rank_00001.safetensors").unlink()


def _remove_manifest(directory):
    (directory / "manifest.json").unlink()


def _break_manifest(directory):
    (directory / "manifest.json").write_text('{"step": 5')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "bytes, the manifest says"),
        (_flip, "sha256 differs"),
        (_remove_rank, "rank_00001.safetensors: missing"),
        (_remove_manifest, "manifest.json"),
        (_break_manifest, "manifest.json"),
    ],
)
def test_resuming_passes_over_a_damaged_checkpoint_and_names_it(tmp_path, damage, words):
    old, new = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 10)
    damage(new)
    with pytest.raises(DamagedCheckpoint, match=words):
        verify(new)
    warnings = []
    assert find_checkpoint(tmp_path, "auto", warnings.append) == old
    assert len(warnings) == 1
    assert str(new) in warnings[0]


def test_a_newer_format_is_refused_not_passed_over(tmp_path):
    write_checkpoint(tmp_path, 5)
    content = tmp_path / "step_00000010" / "manifest.json"
    write_checkpoint(tmp_path, 10)
    content.write_text(json.dumps(json.loads(content.read_text()) | {"format_version": 99}))
    with pytest.raises(BadInput, match="format version 99"):
        find_checkpoint(tmp_path, "auto", print)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(tmp_path):
    _flip(write_checkpoint(tmp_path, 5))
    _remove_rank(write_checkpoint(tmp_path, 10))
    with pytest.raises(BadInput, match="none of its 2 checkpoints is whole"):
        find_checkpoint(tmp_path, "auto", lambda warning: None)


def test_resume_never_does_not_overwrite_and_a_path_must_hold_a_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path, "never", print) is None
    directory = write_checkpoint(tmp_path / "run" / "checkpoints", 5)
    with pytest.raises(BadInput, match="already holds step_00000005"):
        find_checkpoint(directory.parent, "never", print)
    assert find_checkpoint(tmp_path, str(tmp_path / "run"), print) == directory
    assert find_checkpoint(tmp_path, str(directory), print) == directory
    with pytest.raises(BadInput, match="no checkpoint there"):
        find_checkpoint(tmp_path, str(tmp_path / "elsewhere"), print)


def test_half_written_directories_are_not_checkpoints(tmp_path):
    (tmp_path / ".step_00000007.tmp").mkdir()
    (tmp_path / "step_x").mkdir()
    directory = write_checkpoint(tmp_path, 5)
    assert list_checkpoints(tmp_path) == [directory]
