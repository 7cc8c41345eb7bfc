"""The folders that people have: both splits side by side, ImageNet's validation set as unpacked, and hostile names."""

import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.samples import MAX_KEY, unique_keys
from tests.data_tools.shard_contents import by_filename, contents, members
from tests.data_tools.synthetic_imagenet import WNIDS, build, painted_class, write_devkit
from tests.photographs import jpeg_bytes, photographs
from trainer.data.decode import decode_rgb
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex

TILE = jpeg_bytes(photographs()["flower"].crop((0, 0, 60, 40)))


def convert(source: Path, output: Path, *more: str) -> int:
    return main(["imagefolder", "--input", str(source), "--output", str(output), "--workers", "1", *more])


def images(root: Path, *names: str) -> Path:
    """A folder with a small photograph under each of the names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(TILE)
    return root


def refusal(source: Path, output: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    assert convert(source, output, *more) == 2
    assert not output.exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imagefolder: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_both_splits_are_converted_with_the_classes_of_train(name, tmp_path, capsys):
    source = images(tmp_path / "in", "train/ant/1", "train/bee/1", "train/cat/1", f"{name}/cat/2", "test/3")
    assert convert(source, tmp_path / "set", "--val-shards", "1") == 0
    assert "'test' left out, beside train and validation" in capsys.readouterr().err
    assert ShardIndex.open(tmp_path / "set").classes == ("ant", "bee", "cat")
    assert ShardIndex.open(tmp_path / "set", "validation").classes == ("ant", "bee", "cat")
    (sample,) = by_filename(tmp_path / "set", "validation").values()
    assert sample["cls"] == b"2"
    info = json.loads((tmp_path / "set" / "_info.json").read_text())
    assert {split: facts["num_samples"] for split, facts in info["splits"].items()} == {"train": 3, "validation": 1}


def test_splits_converted_together_are_the_same_as_one_by_one(tmp_path):
    source = images(tmp_path / "in", "train/ant/1", "train/bee/1", "val/ant/1", "val/bee/2")
    assert convert(source, tmp_path / "together" / "set") == 0
    assert convert(source / "train", tmp_path / "alone" / "set") == 0
    assert convert(source / "val", tmp_path / "alone" / "set", "--split", "validation") == 0
    assert contents(tmp_path / "together" / "set") == contents(tmp_path / "alone" / "set")


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["train/ant/1", "val/ant/1", "val/bee/1"], [], "holds 1 classes that"),
        (["train/ant/1", "val/ant/1", "validation/ant/1"], [], "holds both val/ and validation/: remove one"),
        (["train/ant/1", "val/1"], [], "has class folders and"),
        (["train/ant/1", "val/ant/1"], ["--split", "train"], "holds both splits: leave out --split"),
        (["train/ant/1", "val/ant/1"], ["--devkit", "x"], "leave it out"),
        (["train/ant/1"], [], "holds a single folder, 'train': is it --input"),
        (["train/ant/1", "test/ant/1"], [], "holds the splits test, train, not classes: rename two to train/ and val/"),
        (["Train/ant/1", "Val/ant/1", "bee/1"], [], "holds the splits Train, Val, not classes"),
        (["ant/1", "bee/1"], ["--val-shards", "2"], "--val-shards is for an --input with train/ and val/"),
        (["ant/1", "bee/1"], ["--devkit", "x"], "that are in no class folders, which"),
        (["ILSVRC2012_val_00000001.JPEG", "readme.txt"], [], "give --devkit ILSVRC2012_devkit_t12.tar.gz, which holds"),
        (["train/ant/1", "val/ILSVRC2012_val_00000001.JPEG"], [], "is ImageNet's validation set, not sorted into"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(names, more, words, tmp_path, capsys):
    source = images(tmp_path / "in", *names)
    assert words in refusal(source, tmp_path / "set", capsys, *more)


@pytest.mark.parametrize("output", ["shards", "ant/shards", "."])
def test_an_output_that_would_count_as_images_is_refused(output, tmp_path, capsys):
    source = images(tmp_path / "in", "ant/1", "bee/1")
    assert convert(source, source / output) == 2
    assert "lies within --input" in capsys.readouterr().err
    assert sorted(path.name for path in source.rglob("*")) == ["1", "1", "ant", "bee"]


def test_an_output_beside_the_splits_or_hidden_is_harmless(tmp_path, capsys):
    source = images(tmp_path / "in", "train/ant/1", "val/ant/1")
    assert convert(source, source / "train" / "shards") == 2
    for _ in range(2):
        assert convert(source, source / "shards") == 0
        assert convert(source / "train", source / "train" / ".shards") == 0
    assert (
        ShardIndex.open(source / "shards").classes == ShardIndex.open(source / "train" / ".shards").classes == ("ant",)
    )


def test_an_unsorted_imagenet_validation_set_is_labelled_by_the_devkit(tmp_path, capsys):
    source = build(tmp_path, per_class=1, num_val=12, width=80, height=60)
    with tarfile.open(source.val) as archive:
        archive.extractall(tmp_path / "val", filter="data")
    (tmp_path / "val" / "valprep.sh").write_text("never run")
    assert convert(tmp_path / "val", tmp_path / "set", "--devkit", str(source.devkit)) == 0
    assert "1 files beside the images are left out" in capsys.readouterr().err
    samples = by_filename(tmp_path / "set", "validation")
    assert len(samples) == 12
    for name, sample in samples.items():
        painted = painted_class(decode_rgb(sample["jpg"]))
        assert int(sample["cls"]) == sorted(WNIDS).index(WNIDS[painted]), name


def test_an_incomplete_imagenet_validation_set_is_refused(tmp_path, capsys):
    source = images(tmp_path / "val", *(f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 3)))
    write_devkit(tmp_path / "devkit.tar.gz", [1, 2, 3])
    message = refusal(source, tmp_path / "set", capsys, "--devkit", str(tmp_path / "devkit.tar.gz"))
    assert "holds 2 validation images where the ground truth" in message
    assert "the first one missing is number 2" in message


def test_a_devkit_of_other_classes_than_train_is_refused(tmp_path, capsys):
    source = images(tmp_path / "in", "train/n00000007/1", "val/ILSVRC2012_val_00000001.JPEG")
    write_devkit(tmp_path / "devkit.tar.gz", [1])
    message = refusal(source, tmp_path / "set", capsys, "--devkit", str(tmp_path / "devkit.tar.gz"))
    assert "are not the class folders of" in message


HOSTILE_NAMES = [
    "..\\..\\x.jpg",
    "new\nline.jpg",
    "\x1b[2J.jpg",
    "größe 🦜.jpg",
    "a'b\"c$(rm -rf)`x`;.jpg",
    "--output.jpg",
    "...jpg",
    "~root.jpg",
    os.fsdecode(b"not utf-8 \xff\xfe.jpg"),
    "x" * 251 + ".jpg",
    "x" * 250 + "y.jpg",
    "UPPER.jpg",
    "upper.jpg",
    "{00..99}.jpg",
]


def test_hostile_file_names_give_plain_keys_and_are_kept_as_labels_only(tmp_path, capsys):
    folder = tmp_path / "in" / os.fsdecode(b"class\n\xff/../../x".replace(b"/", b"|"))
    folder.mkdir(parents=True)
    for name in HOSTILE_NAMES:
        if not name.startswith("."):
            (folder / name).write_bytes(TILE)
    visible = [name for name in HOSTILE_NAMES if not name.startswith(".")]
    (folder / "bad\nname.jpg").write_bytes(b"")
    assert convert(tmp_path / "in", tmp_path / "set") == 2
    assert "bad\\nname.jpg': is empty" in capsys.readouterr().err
    assert convert(tmp_path / "in", tmp_path / "set", "--skip-bad") == 0
    stored = members(tmp_path / "set")
    assert len(stored) == len(visible)
    for key in stored:
        assert re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}", key)
    assert len({key.lower() for key in stored}) == len(stored)
    assert {json.loads(s["json"])["filename"].partition("/")[2] for s in stored.values()} == set(visible)
    index = ShardIndex.open(tmp_path / "set")
    assert index.classes == (folder.name,)
    assert {parse_sample(raw).key for raw in read_samples(index, range(index.num_samples))} == set(stored)


def test_keys_cannot_leave_their_folder_whatever_the_names():
    names = ["../../x", "/etc/passwd", "a/../../b", "..", "", "C:\\x", "x" * 5000, "a\0b", "./.", "__x__", "a/x.tar.gz"]
    keys = unique_keys(names)
    assert len({key.lower() for key in keys}) == len(names)
    for key in keys:
        assert re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}", key)


@pytest.mark.parametrize("split", ["../up", "a/b", "", "a*", "x.y"])
def test_the_name_of_a_split_cannot_lead_elsewhere(split, tmp_path, capsys):
    source = images(tmp_path / "in", "ant/1")
    with pytest.raises(SystemExit) as stopped:
        convert(source, tmp_path / "set", "--split", split)
    assert stopped.value.code == 2
    assert "is not a name of letters, digits, _ and -" in capsys.readouterr().err


def test_links_are_followed_but_not_in_circles(tmp_path, capsys):
    source = images(tmp_path / "in", "ant/1")
    elsewhere = images(tmp_path / "elsewhere", "deep/er/2")
    (source / "bee").symlink_to(elsewhere)
    assert convert(source, tmp_path / "set") == 0
    assert set(by_filename(tmp_path / "set")) == {"ant/1", "bee/deep/er/2"}
    (elsewhere / "deep" / "circle").symlink_to(elsewhere)
    assert "is a link to a folder that it is in: remove it" in refusal(source, tmp_path / "other", capsys)
