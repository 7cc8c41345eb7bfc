"""Conversion keeps every byte, gives the same shards whatever happens on the way, and says what is wrong."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_tools.__main__ import main
from tests.data_tools.shard_contents import contents, members
from tests.photographs import odd_files, write_class_folders
from trainer.data.decode import decode_rgb
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

CLASSES = ["astronaut", "chelsea", "china", "coffee", "flower", "odd", "rocket"]


def convert(source: Path, output: Path, *more: str) -> int:
    return main(["imagefolder", "--input", str(source), "--output", str(output), *more])


@pytest.fixture(scope="module")
def converted(photograph_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "set"
    assert convert(photograph_folder, output, "--shards", "5", "--workers", "2") == 0
    return output


def test_the_number_of_workers_does_not_change_a_byte(converted, photograph_folder, tmp_path):
    for workers in ("1", "3"):
        output = tmp_path / workers / "set"
        assert convert(photograph_folder, output, "--shards", "5", "--workers", workers) == 0
        assert contents(output) == contents(converted)


def test_jpegs_are_stored_untouched(converted, photograph_folder):
    originals = Counter(path.read_bytes() for path in photograph_folder.rglob("*") if path.is_file())
    stored = Counter(sample["jpg"] for sample in members(converted).values())
    changed = originals - stored
    names = {path.name for path in photograph_folder.rglob("*") if path.is_file() and path.read_bytes() in changed}
    assert names == {"cmyk.JPEG", "png_by_content.JPEG"}


def test_other_formats_become_rgb_jpegs_and_are_recorded(converted):
    facts = {json.loads(s["json"])["filename"]: (json.loads(s["json"]), s["jpg"]) for s in members(converted).values()}
    recorded = {name: fact["transcoded_from"] for name, (fact, _) in facts.items() if "transcoded_from" in fact}
    assert recorded == {"odd/cmyk.JPEG": "JPEG CMYK", "odd/png_by_content.JPEG": "PNG RGBA"}
    for name in recorded:
        assert facts[name][1].startswith(b"\xff\xd8\xff")
        difference = np.abs(decode_rgb(facts[name][1]).astype(int) - decode_rgb(odd_files()[name[4:]]))
        assert difference.mean() < 1.5  # a JPEG of quality 100 without chroma subsampling rounds, and no more


def test_members_carry_label_class_name_and_size(converted, photograph_folder):
    for key, sample in members(converted).items():
        assert sorted(sample) == ["cls", "jpg", "json"], key
        facts = json.loads(sample["json"])
        assert CLASSES[int(sample["cls"])] == facts["class"] == facts["filename"].split("/")[0]
        assert facts["label"] == int(sample["cls"])
        assert decode_rgb(sample["jpg"]).shape == (facts["height"], facts["width"], 3)


def test_keys_are_unique_where_base_names_collide(converted, photograph_folder):
    files = [path for path in photograph_folder.rglob("*") if path.is_file()]
    assert len({path.stem for path in files}) < len(files)
    assert len(members(converted)) == len(files)


def test_the_loader_finds_every_sample(converted, photograph_folder):
    index = ShardIndex.open(converted)
    assert index.classes == tuple(CLASSES)
    assert index.shard_lengths.max() - index.shard_lengths.min() <= 1
    samples = [parse_sample(raw) for raw in read_samples(index, np.arange(index.num_samples))]
    plain = members(converted)
    assert {(s.key, s.image, s.label) for s in samples} == {(k, m["jpg"], int(m["cls"])) for k, m in plain.items()}


def test_shards_are_shuffled_over_the_classes_and_the_seed_decides_how(converted, photograph_folder, tmp_path):
    labels = [int(sample["cls"]) for sample in members(converted).values()]
    assert labels != sorted(labels)
    assert convert(photograph_folder, tmp_path / "set", "--shards", "5", "--workers", "1", "--seed", "1") == 0
    assert members(tmp_path / "set") == members(converted)
    assert list(members(tmp_path / "set")) != list(members(converted))


def test_a_folder_without_class_folders_gets_the_label_0(photograph_folder, tmp_path, capsys):
    assert convert(photograph_folder / "china", tmp_path / "set", "--shard-size", "3", "--workers", "1") == 0
    assert "no class folders: all images get the label 0" in capsys.readouterr().err
    assert {sample["cls"] for sample in members(tmp_path / "set").values()} == {b"0"}
    assert ShardIndex.open(tmp_path / "set").shard_lengths.tolist() == [2, 2]


def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(tmp_path):
    source = write_class_folders(tmp_path / "images", per_class=60, width=200, height=150)
    arguments = ["--input", source, "--output", tmp_path / "killed" / "set", "--shards", "60", "--workers", "2"]
    command = [sys.executable, "-m", "data_tools", "imagefolder", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    output = tmp_path / "killed" / "set"
    deadline = time.monotonic() + 60
    while len(list(output.glob("*.tar"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "a worker outlived the command"
    finished = {path: (path.stat().st_ino, path.read_bytes()) for path in output.glob("*.tar")}
    assert 3 <= len(finished) < 60
    assert not (output / "train.json").exists()

    assert subprocess.run(command, capture_output=True).returncode == 0
    assert all(path.stat().st_ino == inode for path, (inode, _) in finished.items()), (
        "a finished shard was written again"
    )
    assert convert(source, tmp_path / "whole" / "set", "--shards", "60", "--workers", "1") == 0
    assert contents(output) == contents(tmp_path / "whole" / "set")


def test_shards_of_another_conversion_are_not_taken_for_ours(photograph_folder, tmp_path, capsys):
    assert convert(photograph_folder / "china", tmp_path, "--shards", "2", "--workers", "1") == 0
    before = contents(tmp_path)
    assert convert(photograph_folder / "coffee", tmp_path, "--shards", "2", "--workers", "1") == 2
    assert "holds shards of other images or options" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (lambda root: None, [], "is not a folder"),
        (lambda root: root.mkdir(), [], "holds no images"),
        (
            lambda root: write_class_folders(root, 1, 40, 30),
            ["--shards", "7"],
            "7 shards are more than the 6",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(make, more, words, tmp_path, capsys):
    make(tmp_path / "images")
    assert convert(tmp_path / "images", tmp_path / "set", "--workers", "1", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imagefolder: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_a_second_split_keeps_the_first(photograph_folder, tmp_path):
    assert convert(photograph_folder / "china", tmp_path, "--shards", "2", "--workers", "1") == 0
    assert convert(photograph_folder / "coffee", tmp_path, "--split", "validation", "--workers", "1") == 0
    info = json.loads((tmp_path / "_info.json").read_text())
    assert {name: split["num_samples"] for name, split in info["splits"].items()} == {"train": 4, "validation": 4}
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sizes == {"train-00000.tar": 2, "train-00001.tar": 2, "validation-00000.tar": 4}
    assert ShardIndex.open(tmp_path, split="validation").num_samples == 4


def test_help_names_the_commands():
    done = subprocess.run([sys.executable, "-m", "data_tools", "--help"], capture_output=True, text=True, check=True)
    assert "imagefolder" in done.stdout
    assert "photographs" in done.stdout
