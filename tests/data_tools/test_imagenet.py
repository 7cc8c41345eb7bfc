"""ImageNet's own archives become shards with the right labels, every byte kept, whatever happens on the way."""

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data_tools import imagenet
from data_tools.__main__ import main
from data_tools.shard_scan import describe_shard
from tests.data_tools.shard_contents import by_filename, contents
from tests.data_tools.synthetic_imagenet import WNIDS, SyntheticImagenet, build, painted_class
from trainer.data.decode import decode_rgb
from trainer.data.shard_index import ShardIndex


def command(source: SyntheticImagenet, output: Path, *more: str) -> list[str]:
    files = ["--train", str(source.train), "--val", str(source.val), "--devkit", str(source.devkit)]
    return ["imagenet", *files, "--output", str(output), *more]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> SyntheticImagenet:
    return build(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "set"
    assert main(command(source, output, "--shards", "4", "--val-shards", "3", "--workers", "2")) == 0
    return output


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory) -> Path:
    """The archives unpacked as people do: train/WNID/*.JPEG and val/*.JPEG."""
    root = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(source.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(root / "train" / member.name.removesuffix(".tar"), filter="data")
    with tarfile.open(source.val) as archive:
        archive.extractall(root / "val", filter="data")
    return root


@pytest.mark.parametrize(("split", "count"), [("train", 30), ("validation", 20)])
def test_every_label_is_the_class_painted_into_the_image(converted, split, count):
    samples = by_filename(converted, split)
    assert len(samples) == count
    for name, sample in samples.items():
        painted = painted_class(decode_rgb(sample["jpg"]))
        assert int(sample["cls"]) == sorted(WNIDS).index(WNIDS[painted]), name
        assert json.loads(sample["json"])["class"] == WNIDS[painted], name


def test_the_index_lists_the_wnids_in_the_order_of_the_labels(converted):
    for split in ("train", "validation"):
        assert ShardIndex.open(converted, split).classes == tuple(sorted(WNIDS))


def test_shards_are_the_same_as_those_of_the_unpacked_folders(converted, source, unpacked, tmp_path):
    devkit = ["--devkit", str(source.devkit)]
    arguments = ["--input", str(unpacked), *devkit, "--shards", "4", "--val-shards", "3", "--workers", "2"]
    assert main(["imagefolder", *arguments, "--output", str(tmp_path / "set")]) == 0
    from_folder, from_archives = contents(tmp_path / "set"), contents(converted)
    for report in ("train.report.json", "validation.report.json"):  # other files, other fingerprints
        assert from_folder.pop(report) != from_archives.pop(report)
    assert from_folder == from_archives


def test_bytes_are_the_original_ones_but_for_odd_files(converted, source, unpacked):
    transcoded = {}
    for split, folder in (("train", "train"), ("validation", "val")):
        for name, sample in by_filename(converted, split).items():
            if sample["jpg"] != (unpacked / folder / name).read_bytes():
                transcoded[name] = json.loads(sample["json"])["transcoded_from"]
    expected = {name: kind for name, kind in source.odd.items() if kind in ("cmyk", "png")}
    assert transcoded == {name: {"cmyk": "JPEG CMYK", "png": "PNG RGBA"}[kind] for name, kind in expected.items()}
    reports = [json.loads((converted / f"{split}.report.json").read_text()) for split in ("train", "validation")]
    assert reports[0]["transcoded"] | reports[1]["transcoded"] == transcoded
    assert reports[0]["bad"] == reports[1]["bad"] == {}


def test_the_number_of_workers_does_not_change_a_byte(converted, source, tmp_path):
    output = tmp_path / "set"
    assert main(command(source, output, "--shards", "4", "--val-shards", "3", "--workers", "1")) == 0
    assert contents(output) == contents(converted)


def test_either_set_can_be_converted_alone_into_the_same_shards(converted, source, tmp_path):
    output = ["--output", str(tmp_path / "set"), "--workers", "1"]
    val = ["--val", str(source.val), "--devkit", str(source.devkit), "--val-shards", "3"]
    assert main(["imagenet", "--train", str(source.train), "--shards", "4", *output]) == 0
    assert main(["imagenet", *val, *output]) == 0
    assert contents(tmp_path / "set") == contents(converted)


def test_numbers_other_than_those_of_ilsvrc2012_are_warned_of(source, tmp_path, capsys):
    assert main(["imagenet", "--train", str(source.train), "--output", str(tmp_path / "set"), "--workers", "1"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: 30 train images of 6 classes, where ILSVRC2012 has 1281167 of 1000: right for a part of it only"
    ]


def test_check_md5_compares_with_the_official_ones(source, tmp_path, monkeypatch, capsys):
    arguments = ["imagenet", "--train", str(source.train), "--output", str(tmp_path / "set"), "--workers", "1"]
    assert main([*arguments, "--check-md5"]) == 2
    official = "1d675b47d978889d74fa0da5fadfb00e"
    assert f"where ILSVRC2012_img_train.tar has {official}: it is damaged or another file" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    md5 = subprocess.run(["md5sum", source.train], capture_output=True, text=True, check=True).stdout.split()[0]
    monkeypatch.setitem(imagenet._MD5, "ILSVRC2012_img_train.tar", md5)
    assert main([*arguments, "--check-md5"]) == 0


def test_the_classes_of_ilsvrc2012_are_known_without_importing_torch():
    code = (
        "import sys; from data_tools import __main__, imagenet; wnids = imagenet._official_wnids(); "
        "assert len(wnids) == 1000 and wnids == sorted(wnids); imagenet._refuse_other_classes(wnids, 'train'); "
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_KILL_POINTS: dict[str, Callable[[Path], bool]] = {
    "while the images are checked": lambda output: output.exists(),
    "before the first shard": lambda output: (output / "validation.report.json").exists(),
    "among the training shards": lambda output: len(list(output.glob("train-*.tar"))) >= 3,
    "before the training index": lambda output: len(list(output.glob("train-*.tar"))) == 60,
    "among the validation shards": lambda output: len(list(output.glob("validation-*.tar"))) >= 2,
}


@pytest.mark.slow
def test_a_conversion_killed_at_any_point_goes_on_and_gives_the_same_bytes(tmp_path):
    source = build(tmp_path, per_class=40, num_val=80)
    options = ("--shards", "60", "--val-shards", "20", "--workers", "2")
    assert main(command(source, tmp_path / "whole" / "set", *options)) == 0
    for number, (point, reached) in enumerate(_KILL_POINTS.items()):
        output = tmp_path / str(number) / "set"
        arguments = [sys.executable, "-m", "data_tools", *command(source, output, *options)]
        _kill_when(lambda output=output, reached=reached: reached(output), arguments)
        for split in ("train", "validation"):
            shards = sorted(output.glob(f"{split}-*.tar"))
            for shard in shards:
                describe_shard(shard)  # raises if it is not whole
            if len(shards) < {"train": 60, "validation": 20}[split]:
                assert not (output / f"{split}.json").exists(), point
        finished = {shard: shard.stat().st_ino for shard in output.glob("*.tar")}
        assert subprocess.run(arguments, capture_output=True).returncode == 0, point
        assert {shard: shard.stat().st_ino for shard in finished} == finished, f"{point}: a shard was written again"
        assert contents(output) == contents(tmp_path / "whole" / "set"), point


def _kill_when(reached: Callable[[], bool], arguments: list[str]) -> None:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "a worker outlived the command"
