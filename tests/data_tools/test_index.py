"""Shards that others made are read as their own tools read them, or refused with the shard's name and the mend."""

import errno
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset

from data_tools.__main__ import main
from data_tools.output_folder import sole_writer
from tests.data_tools.foreign_shards import by_img2dataset, by_tar, by_timm, by_webdataset
from tests.photographs import jpeg_bytes, photographs
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

MAKERS: dict[str, Callable[[Path], list[Path]]] = {
    "webdataset": by_webdataset,
    "img2dataset": by_img2dataset,
    "timm": by_timm,
    "pax": partial(by_tar, format="pax"),
    "gnu": partial(by_tar, format="gnu"),
}


def index(*arguments: object) -> int:
    return main(["index", *map(str, arguments), "--workers", "2"])


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def photograph() -> bytes:
    return jpeg_bytes(photographs()["coffee"].crop((0, 0, 64, 48)))


@pytest.fixture
def sound(tmp_path) -> Path:
    """A folder with one good shard."""
    write_tar(tmp_path / "a-0.tar", {"x.jpg": photograph(), "x.cls": b"1", "y.jpg": photograph(), "y.cls": b"0"})
    return tmp_path


@pytest.fixture(scope="module", params=MAKERS)
def foreign(request, tmp_path_factory) -> list[Path]:
    """Shards that another tool made, with their index beside them."""
    paths = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    assert index(*paths) == 0
    return paths


def test_samples_are_those_that_webdataset_finds(foreign):
    theirs = {}
    for sample in webdataset.WebDataset([str(path) for path in foreign], shardshuffle=False):
        (image,) = (content for name, content in sample.items() if name in ("jpg", "jpeg", "png", "webp"))
        theirs[sample["__key__"]] = image, int(sample.get("cls", -1))
    opened = ShardIndex.open(foreign[0].parent)
    samples = [parse_sample(raw) for raw in read_samples(opened, np.arange(opened.num_samples))]
    assert {sample.key: (sample.image, sample.label) for sample in samples} == theirs
    assert len(theirs) == opened.num_samples == 12


def test_the_training_loader_reads_every_sample_once(foreign):
    opened = ShardIndex.open(foreign[0].parent)
    config = DataConfig(workers=0, window=4)
    loader = LaneLoader(
        opened, config, image_size=32, seed=0, global_batch=4, micro_batch=4, rank=0, world_size=1, end_step=3
    )
    batches = list(loader)
    labels = dict(
        zip([key for batch in batches for key in batch.keys], [int(n) for b in batches for n in b.labels], strict=True)
    )
    samples = [parse_sample(raw) for raw in read_samples(opened, np.arange(opened.num_samples))]
    assert labels == {sample.key: sample.label for sample in samples}
    assert all(batch.images.float().std() > 10 for batch in batches)


def test_what_index_wrote_passes_verify(foreign):
    assert main(["verify", str(foreign[0].parent), "--decode", "--workers", "2"]) == 0


def test_the_index_of_our_own_shards_is_the_one_that_the_converter_wrote(shards, tmp_path):
    directory = Path(shutil.copytree(shards, tmp_path / shards.name))
    for file in ("train.json", "train.offsets.npy", "_info.json", "sizes.json"):
        (directory / file).unlink()
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(ShardIndex.open(shards).classes or ()))
    assert index(directory, "--classes", classes) == 0
    for file in ("train.json", "train.offsets.npy", "_info.json", "sizes.json"):
        assert (directory / file).read_bytes() == (shards / file).read_bytes()


def test_an_index_elsewhere_finds_the_shards(sound, tmp_path):
    assert index(sound / "a-0.tar", "--output", tmp_path / "elsewhere" / "deep", "--split", "photos") == 0
    opened = ShardIndex.open(tmp_path / "elsewhere" / "deep", "photos")
    assert [parse_sample(raw).label for raw in read_samples(opened, np.arange(2))] == [1, 0]


def test_an_index_above_the_shards_moves_with_them(tmp_path):
    (tmp_path / "set" / "part").mkdir(parents=True)
    write_tar(tmp_path / "set" / "part" / "0.tar", {"x.jpg": photograph()})
    assert index(tmp_path / "set" / "part", "--output", tmp_path / "set") == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    opened = ShardIndex.open(tmp_path / "moved")
    assert parse_sample(read_samples(opened, np.arange(1))[0]).key == "x"


def test_an_index_of_the_same_shards_is_renewed_and_keeps_its_class_names(sound, capsys):
    (sound / "names").write_text("cup\nmug\n")
    assert index(sound, "--classes", sound / "names") == 0
    write_tar(sound / "a-0.tar", {"z.jpg": photograph(), "z.cls": b"1"})
    assert index(sound) == 0
    assert ShardIndex.open(sound).num_samples == 1
    assert ShardIndex.open(sound).classes == ("cup", "mug")


def test_an_index_of_other_shards_is_kept_unless_told_otherwise(sound, capsys):
    assert index(sound) == 0
    before = (sound / "train.json").read_bytes()
    write_tar(sound / "a-1.tar", {"z.jpg": photograph()})
    assert index(sound) == 2
    assert "train.json is there already, for other shards" in capsys.readouterr().err
    assert (sound / "train.json").read_bytes() == before
    assert index(sound, "--overwrite") == 0
    assert ShardIndex.open(sound).num_samples == 3


def test_the_splits_of_one_folder_are_not_mixed(tmp_path, capsys):
    by_timm(tmp_path)
    assert index(tmp_path) == 2
    message = capsys.readouterr().err
    assert "tars of several names (imagenet*k-train-*.tar, imagenet*k-validation-*.tar)" in message
    for split in ("train", "validation"):
        assert index(tmp_path / f"imagenet*k-{split}-*.tar", "--split", split) == 0
        assert ShardIndex.open(tmp_path, split).num_samples == 12
    info = json.loads((tmp_path / "_info.json").read_text())
    assert info["name"] == "imagenet1k"
    assert set(info["splits"]) == {"train", "validation"}


def test_a_killed_index_leaves_nothing_behind(tmp_path):
    """Neither a file that looks like an index nor a worker."""
    with open(tmp_path / "large-0.tar", "wb") as file:
        file.truncate(2**36)  # zeros, which take up no disk and minutes to read
    command = [sys.executable, "-m", "data_tools", "index", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (workers := psutil.Process(process.pid).children(recursive=True)) or len(workers) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["large-0.tar"]


def test_a_folder_that_another_command_writes_to_is_refused(sound, capsys):
    with sole_writer(sound, "mend that"):
        assert index(sound) == 2
    assert f"another conversion or index is writing to {sound}" in capsys.readouterr().err
    assert not (sound / "train.json").exists()


def test_no_room_for_the_index_is_one_line_and_leaves_none(sound, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "train.json.tmp")

    monkeypatch.setattr("data_tools.index.write_index", full)
    assert index(sound) == 2
    assert f"index: cannot write to {sound}: No space left on device; mend that" in capsys.readouterr().err


def test_an_index_that_cannot_be_read_is_one_line(sound, capsys):
    (sound / "train.json").mkdir()
    assert index(sound) == 2
    assert "train.json is there already and cannot be read (Is a directory)" in capsys.readouterr().err


J, C = photograph(), b"1"
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "no_image": (
        {"a.cls": C, "b.txt": b"", "c.jpg": J},
        "2 of 3 samples without an image (.jpg, .jpeg, .png, .webp), the first 'a' at byte 0 with '.cls'",
    ),
    "two_images": (
        {"a.jpg": J, "a.png": J},
        "1 of 1 samples with several images, the first 'a' at byte 0 with '.jpg, .png'",
    ),
    "not_adjacent": ({"a.jpg": J, "b.jpg": J, "a.cls": C}, "the members of sample 'a' are not adjacent"),
    "twice": ({"a.jpg": J, "a.JPG": J}, "sample 'a' at byte 0 holds .jpg twice"),
    "label": ({"a.jpg": J, "a.cls": b"a\ncat"}, r"the label of sample 'a' at byte 0 is 'a\ncat', not a class number"),
    "huge_label": ({"a.jpg": J, "a.cls": b"9" * 5000}, "not a class number"),
    "negative_label": ({"a.jpg": J, "a.cls": b"-2"}, "'-2', not a class number"),
    "no_samples": ({"README": b"hello"}, "no samples in it: remove it"),
    "hostile": ({"../../\n/etc/passwd.txt": b""}, r"the first '../../\n/etc/passwd' at byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_samples_that_training_could_not_read_are_refused(case, sound, capsys):
    files, words = REFUSED[case]
    write_tar(sound / "a-1.tar", files)
    assert index(sound) == 2
    refused_with(f"{sound}/a-1.tar: ", words, sound, capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (gzip.compress(bytes(10240)), "compressed with gzip, and a compressed tar can only be read from its beginning"),
        (b"<html>404</html>".ljust(1024), "no tar header at byte 0"),
    ],
    ids=["empty", "gzip", "a page"],
)
def test_files_that_are_no_tars_are_refused(content, words, sound, capsys):
    (sound / "a-1.tar").write_bytes(content)
    assert index(sound) == 2
    refused_with(f"{sound}/a-1.tar: ", words, sound, capsys)


@pytest.mark.parametrize("cut", [100, 512 + 100, -1024 - 9000, -9500])
def test_a_shard_whose_writer_was_killed_is_refused(cut, sound, capsys):
    content = (sound / "a-0.tar").read_bytes()
    (sound / "a-1.tar").write_bytes(content[:cut])
    assert index(sound) == 2
    refused_with(f"{sound}/a-1.tar: ", "truncated", sound, capsys)


def refused_with(shard: str, words: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """One line for the shard, and no index left behind."""
    message = capsys.readouterr().err
    assert "1 of 2 shards cannot be indexed; no index was written" in message
    (line,) = [line for line in message.splitlines() if line.startswith(f"  {shard}")]
    assert words in line
    assert not [path.name for path in folder.iterdir() if path.suffix != ".tar"]


def test_every_bad_shard_is_named(sound, capsys):
    for number in range(1, 4):
        write_tar(sound / f"a-{number}.tar", {"a.txt": b""})
    assert index(sound) == 2
    message = capsys.readouterr().err
    assert "3 of 4 shards cannot be indexed" in message
    assert all(f"a-{number}.tar: 1 of 1 samples without an image" in message for number in range(1, 4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/*.tar"], "no shards match nowhere/*.tar"),
        (["s3://bucket/train-0.tar"], "an index is made of shards on this machine"),
        (["empty"], "holds no .tar files"),
        (["packed"], "holds no .tar files, only compressed ones such as a.tar.gz: gunzip them"),
        (["a-0.tar", "more/b-0.tar"], "the shards lie in 2 folders: say with --output"),
        (["a-0.tar", "--classes", "names"], "the shards hold the label 1, but there are only 1 class names"),
        (["a-0.tar", "--classes", "nowhere"], "--classes nowhere cannot be read"),
        (["a-0.tar", "--output", "a-0.tar"], "--output a-0.tar cannot be made"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, sound, monkeypatch, capsys):
    monkeypatch.chdir(sound)
    for folder in ("empty", "packed", "more"):
        (sound / folder).mkdir()
    (sound / "packed" / "a.tar.gz").write_bytes(b"")
    write_tar(sound / "more" / "b-0.tar", {"x.jpg": photograph()})
    (sound / "names").write_text("cup\n")
    assert index(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("index: ")]
    assert words in line
    assert not (sound / "train.json").exists()
