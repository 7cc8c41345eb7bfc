"""`verify` names every fault that there is, each with its shard, byte range and sample, and none that there isn't."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.__main__ import main
from tests.data.http_store import serve
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex, offsets_file
from trainer.data.tar_members import BLOCK, members_of


@pytest.fixture
def copy(shards, tmp_path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


class Victim:
    """A sample of a copy of the shards, to be damaged."""

    def __init__(self, directory: Path, sample: int) -> None:
        index = ShardIndex.open(directory)
        shard, _ = index.locate(sample)
        self.path = index.shard_path(shard)
        self.start, self.end = index.offsets[sample].tolist()
        (raw,) = read_samples(index, np.array([sample]))
        self.key = parse_sample(raw).key
        self.members = {member.extension: member for member in members_of(raw.content)}
        self.where = f"shard {self.path}, bytes {self.start}-{self.end}"

    def overwrite(self, extension: str, offset: int, content: bytes) -> None:
        """Writes over a member, from so many bytes after the beginning of its content."""
        with open(self.path, "r+b") as file:
            file.seek(self.start + self.members[extension].start + offset)
            file.write(content)


def verify(directory: Path | str, capsys: pytest.CaptureFixture, *more: str) -> list[str]:
    """The faults that it prints. It must exit with 2, and count them in one line on stderr."""
    assert main(["verify", str(directory), "--workers", "2", *more]) == 2
    printed = capsys.readouterr()
    faults = printed.out.splitlines()
    (summary,) = [line for line in printed.err.splitlines() if line.startswith("verify: ")]
    assert summary.startswith(f"verify: {len(faults)} faults in ")
    return sorted(faults)


def test_sound_shards_pass(shards, capsys):
    assert main(["verify", str(shards / "train.json"), "--decode", "--workers", "2"]) == 0
    assert "150 samples in 6 shards are as the index says, and every image decodes" in capsys.readouterr().out


def test_every_fault_is_named_with_shard_bytes_and_sample(copy, capsys):
    third_last = Victim(copy, 147).start
    image, header, label, other = (Victim(copy, sample) for sample in (3, 7, 45, 50))
    image.overwrite("jpg", 0, bytes(300))
    header.overwrite("jpg", -BLOCK, b"\xff\xfe")
    label.overwrite("cls", 0, b"7")
    other.overwrite("cls", 0, b"x")
    (copy / "train-00003.tar").unlink()
    with open(copy / "train-00005.tar", "r+b") as file:
        file.truncate(third_last + 700)

    truncated, missing, *damaged = [
        [fault for fault in verify(copy, capsys, "--decode") if part in fault]
        for part in ("train-00005.tar", "train-00003.tar", image.where, header.where, label.where, other.where)
    ]
    assert [len(faults) for faults in (truncated, missing, *damaged)] == [2, 1, 1, 1, 1, 1]
    assert "the last 3 samples are cut off" in truncated[0]
    assert "No such file" in missing[0]
    for (fault,), victim, words in zip(
        damaged,
        (image, header, label, other),
        (
            "not an image",
            "no tar header at byte",
            "its label is 7, and the index names 6 classes",
            "its .cls is 'x', not a class number",
        ),
        strict=True,
    ):
        assert words in fault
        assert victim.key in fault


def test_a_change_that_no_tar_header_betrays_shows_in_the_sha256(copy, capsys):
    victim = Victim(copy, 20)
    victim.overwrite("jpg", 400, b"\x00\x01\x02\x03")
    (fault,) = verify(copy, capsys)
    assert f"shard {victim.path}: its sha256 is " in fault
    assert "--decode may tell which" in fault


def test_byte_ranges_of_other_samples_are_found(copy, capsys):
    file = offsets_file(copy / "train.json")
    offsets = np.load(file)
    offsets[10, 1] -= BLOCK
    offsets[11, 0] -= BLOCK
    np.save(file, offsets)
    faults = verify(copy, capsys)
    assert [("past the range" in fault, "no tar header" in fault or "members of" in fault) for fault in faults] == [
        (True, False),
        (False, True),
    ]
    offsets[[60, 61]] = offsets[[61, 60]]
    np.save(file, offsets)
    faults = verify(copy, capsys)
    assert any("train-00003.tar: the index places sample 1 before the one that it follows" in fault for fault in faults)


def test_samples_that_the_index_does_not_know_are_found(copy, capsys):
    index = json.loads((copy / "train.json").read_text())
    index["shardlist"][0]["nsamples"] -= 2
    (copy / "train.json").write_text(json.dumps(index))
    file = offsets_file(copy / "train.json")
    np.save(file, np.delete(np.load(file), [5, 40], axis=0))
    faults = verify(copy, capsys)
    assert len(faults) == 6  # three members of each
    assert all("train-00000.tar" in fault and "belongs to no sample in the index" in fault for fault in faults)


def test_a_tar_behind_the_tar_is_found(copy, capsys):
    index = json.loads((copy / "train.json").read_text())
    content = (copy / "train-00001.tar").read_bytes()
    (copy / "train-00001.tar").write_bytes(content * 2)
    index["shardlist"][1]["filesize"] *= 2
    (copy / "train.json").write_text(json.dumps(index))
    tail, changed = verify(copy, capsys)
    assert "train-00001.tar" in tail
    assert "more data follow the mark that ends the archive" in tail
    assert "its sha256 is" in changed


def test_shards_behind_a_url_are_checked_too(copy, capsys):
    with serve(copy) as store:
        assert main(["verify", store.url, "--workers", "1"]) == 0
        assert f"{store.url}/train.json: 150 samples" in capsys.readouterr().out
        Victim(copy, 3).overwrite("jpg", 0, bytes(300))
        (copy / "train-00003.tar").unlink()
        decoding, changed, missing = verify(store.url, capsys, "--decode")
    assert "train-00000.tar, bytes " in decoding
    assert f"{store.url}/train-00000.tar: its sha256 is" in changed
    assert f"{store.url}/train-00003.tar" in missing


def test_an_index_that_cannot_be_used_is_one_line_and_other_byte_ranges_a_fault(copy, capsys):
    assert main(["verify", str(copy / "nowhere")]) == 2
    assert "verify: no shard index at" in capsys.readouterr().err
    file = offsets_file(copy / "train.json")
    np.save(file, np.load(file)[:-1])
    (fault,) = verify(copy, capsys)
    assert "holds int64 [149, 2] where the index lists 150 samples: write the index anew" in fault


def test_without_byte_ranges_sizes_and_sha256_are_compared_all_the_same(copy, capsys):
    Victim(copy, 20).overwrite("jpg", 400, b"\x00\x01\x02\x03")
    (copy / "train-00003.tar").unlink()
    offsets_file(copy / "train.json").unlink()
    ranges, changed, missing = verify(copy, capsys)
    assert "cannot read train.offsets.npy" in ranges
    assert "train-00000.tar: its sha256 is" in changed
    assert "train-00003.tar" in missing


def test_every_split_in_a_folder_is_checked_unless_one_is_named(copy, capsys):
    for name in ("json", "offsets.npy"):
        shutil.copy(copy / f"train.{name}", copy / f"validation.{name}")
    (copy / "notes.json").write_text("[1]")
    assert main(["verify", str(copy), "--workers", "2"]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(copy / "train.json"),
        str(copy / "validation.json"),
    ]
    offsets_file(copy / "validation.json").unlink()
    assert main(["verify", str(copy), "--workers", "2"]) == 2
    printed = capsys.readouterr()
    assert "cannot read validation.offsets.npy" in printed.out
    assert "1 faults in 1 of 14 files" in printed.err
    assert main(["verify", str(copy), "--split", "train", "--workers", "2"]) == 0
    capsys.readouterr()
    (copy / "train.json").write_text("{")
    assert main(["verify", str(copy)]) == 2
    assert "train.json is not a shard index" in capsys.readouterr().err
