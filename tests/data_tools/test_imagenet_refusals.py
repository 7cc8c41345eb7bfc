"""Whatever is given in place of an official archive is refused by what it is, on one line, before anything is made."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.__main__ import main
from tests.data_tools.synthetic_imagenet import WNIDS, SyntheticImagenet, build, tar_bytes, write_devkit

JPEG = b"\xff\xd8\xff\xd9"
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": JPEG for number in range(1, 5)}
DOGS = [f"n{2085620 + number:08d}" for number in range(120)]
THOUSAND = tuple(f"n{number:08d}" for number in range(1000))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> SyntheticImagenet:
    return build(tmp_path_factory.mktemp("downloads"), per_class=1, num_val=4, width=60, height=50)


def class_tars(wnids: list[str] | tuple[str, ...]) -> dict[str, bytes]:
    return {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": JPEG}) for wnid in wnids}


def link_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("n01440764.tar")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return stream.getvalue()


def refusal(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    """The line that the command ends with; nothing may be made."""
    output = tmp_path / "set"
    assert main(["imagenet", "--output", str(output), "--workers", "1", *arguments]) == 2
    assert not output.exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imagenet: ")]
    assert len(lines) == 1
    return lines[0]


# What the file holds, made from the synthetic downloads, and the words of the refusal.
WRONG_TRAIN: dict[str, tuple[Callable[[SyntheticImagenet], bytes], str]] = {
    "validation set": (lambda s: s.val.read_bytes(), "is the validation set: give it as --val, with --devkit"),
    "test set": (
        lambda s: tar_bytes({"test/ILSVRC2012_test_00000001.JPEG": JPEG}),
        "is the test set, whose labels were never published",
    ),
    "task 3": (lambda s: tar_bytes(class_tars(DOGS)), "is task 3's: 120 classes, all of them dogs"),
    "one class": (lambda s: tar_bytes({"n01440764_1.JPEG": JPEG}), "it is one class's tar, task 3's, or packed anew"),
    "packed anew": (lambda s: tar_bytes({"train/n01440764/n01440764_1.JPEG": JPEG}), "or packed anew"),
    "devkit": (lambda s: s.devkit.read_bytes(), "is compressed with gzip"),
    "compressed": (lambda s: gzip.compress(s.train.read_bytes()), "is compressed with gzip"),
    "no tar": (lambda s: b"<html>Please log in</html>" * 100, "is not a tar file"),
    "short text": (lambda s: b"404", "is not a tar file"),
    "empty": (lambda s: b"", "is empty"),
    "cut within a member": (lambda s: s.train.read_bytes()[:-20000], "is incomplete: at least "),
    "cut within a header": (
        lambda s: s.train.read_bytes()[: 512 + len_of_first(s.train) + 100],
        "ends within a header, at least 412 bytes are missing",
    ),
    "cut at a member's end": (
        lambda s: s.train.read_bytes()[: 512 + len_of_first(s.train)],
        "lacks the mark at its end, at least 1024 bytes",
    ),
    "unfinished, with the rest allocated": (
        lambda s: s.train.read_bytes()[: 512 + len_of_first(s.train)] + bytes(2**21),
        "nothing but zeros follows byte",
    ),
    "cut inner tar": (
        lambda s: tar_bytes({"n01440764.tar": tar_bytes({"n01440764_1.JPEG": bytes(9000)})[:5120]}),
        "n01440764.tar in ",
    ),
    "empty inner tar": (lambda s: tar_bytes({"n01440764.tar": tar_bytes({})}), "holds no images: download it again"),
    "garbage in an inner tar": (
        lambda s: tar_bytes({"n01440764.tar": tar_bytes({"n01440764_1.JPEG": JPEG})[:1024] + b"x" * 5120}),
        "is damaged: no tar header at byte",
    ),
    "class twice": (
        lambda s: tar_bytes(class_tars(["n01440764"]))[: 512 + 10240] + tar_bytes(class_tars(["n01440764"])),
        "holds n01440764.tar twice: it is not the official archive",
    ),
    "another class's image": (
        lambda s: tar_bytes({"n01440764.tar": tar_bytes({"n01440765_1.JPEG": JPEG})}),
        "holds 'n01440765_1.JPEG', which is no image of that class",
    ),
    "hostile inner name": (
        lambda s: tar_bytes({"n01440764.tar": tar_bytes({"../../x\n.JPEG": JPEG})}),
        "holds '../../x\\n.JPEG', which is no image of that class",
    ),
    "hostile name": (lambda s: tar_bytes({"/etc/\x1b[2Jpasswd": JPEG}), "holds '/etc/\\x1b[2Jpasswd': it is none of"),
    "link": (lambda s: link_tar(), "which is no regular file (tar type b'2')"),
    "other classes": (lambda s: tar_bytes(class_tars(THOUSAND)), "1000 classes but not ILSVRC2012's: 'n00000000'"),
}


def len_of_first(path: Path) -> int:
    """Bytes of the first member with its padding."""
    with tarfile.open(path) as tar:
        return -(-tar.getmembers()[0].size // 512) * 512


@pytest.mark.parametrize("wrong", WRONG_TRAIN)
def test_what_is_no_training_set_is_refused(wrong, source, tmp_path, capsys):
    make, words = WRONG_TRAIN[wrong]
    file = tmp_path / "file.tar"
    file.write_bytes(make(source))
    message = refusal(["--train", str(file)], tmp_path, capsys)
    assert words in message
    assert str(file) in message


def test_the_refusal_of_a_partial_download_says_how_many_bytes_are_missing(source, tmp_path, capsys):
    whole = source.val.read_bytes()
    with tarfile.open(source.val) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    file = tmp_path / "ILSVRC2012_img_val.tar"
    file.write_bytes(whole[: end - 700])
    message = refusal(["--val", str(file), "--devkit", str(source.devkit)], tmp_path, capsys)
    assert f"is incomplete: at least 700 bytes are missing, since '{last.name}' ends after byte {end - 700}" in message


WRONG_VAL: dict[str, tuple[Callable[[SyntheticImagenet], bytes], str]] = {
    "training set": (lambda s: s.train.read_bytes(), "is a training set: give ILSVRC2012_img_train.tar as --train"),
    "test set": (lambda s: tar_bytes({"ILSVRC2012_test_00000001.JPEG": JPEG}), "is the test set, whose labels"),
    "packed anew": (lambda s: tar_bytes({f"val/{name}": JPEG for name in VAL}), "where the official archive has no"),
    "an image less": (
        lambda s: tar_bytes(dict(list(VAL.items())[1:])),
        "holds 3 validation images where the ground truth in",
    ),
    "an image more": (
        lambda s: tar_bytes(VAL | {"ILSVRC2012_val_00000005.JPEG": JPEG}),
        "holds 5 validation images where the ground truth in",
    ),
    "other numbers": (
        lambda s: tar_bytes(dict(list(VAL.items())[1:]) | {"ILSVRC2012_val_00000005.JPEG": JPEG}),
        "the first one missing is number 1:",
    ),
    "something else": (lambda s: tar_bytes({"readme.txt": b"hello"}), "it is none of ILSVRC2012's archives of images"),
}


@pytest.mark.parametrize("wrong", WRONG_VAL)
def test_what_is_no_validation_set_is_refused(wrong, source, tmp_path, capsys):
    make, words = WRONG_VAL[wrong]
    file = tmp_path / "file.tar"
    file.write_bytes(make(source))
    assert words in refusal(["--val", str(file), "--devkit", str(source.devkit)], tmp_path, capsys)


def gzipped(members: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_bytes(members))


def devkit_bytes(scratch: Path, ground_truth: list, **options: object) -> bytes:
    write_devkit(scratch / "devkit", ground_truth, **options)
    return (scratch / "devkit").read_bytes()


_FOLDER = "ILSVRC2012_devkit_t12"
_TRUTH = f"{_FOLDER}/data/ILSVRC2012_validation_ground_truth.txt"
WRONG_DEVKIT: dict[str, tuple[Callable[[SyntheticImagenet, Path], bytes], str]] = {
    "task 3": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 3, 4], folder="ILSVRC2012_devkit_t3"),
        "is the devkit of task 3 (dogs)",
    ),
    "task 3's classes": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 3, 4], wnids=tuple(DOGS)),
        "is task 3's: 120 classes, all of them dogs",
    ),
    "another year's": (
        lambda s, tmp: gzipped({"ILSVRC2010_devkit-1.0/data/meta.mat": b""}),
        "holds no data/ILSVRC2012_validation_ground_truth.txt: it is not ILSVRC2012_devkit_t12.tar.gz",
    ),
    "images": (lambda s, tmp: s.val.read_bytes(), "holds no data/meta.mat"),
    "no archive": (lambda s, tmp: b"hello", "is not a whole .tar.gz"),
    "cut": (lambda s, tmp: s.devkit.read_bytes()[:-200], "is not a whole .tar.gz"),
    "garbage for a table": (
        lambda s, tmp: gzipped({f"{_FOLDER}/data/meta.mat": b"nothing" * 40, _TRUTH: b"1\n"}),
        "holds no readable table of synsets",
    ),
    "ids of no class": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 7, 4]),
        "line 3 of data/ILSVRC2012_validation_ground_truth.txt in",
    ),
    "words for ids": (lambda s, tmp: devkit_bytes(tmp, [1, "two", 3, 4]), "is 'two', which is the ILSVRC2012_ID of no"),
    "another number of labels": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 3]),
        "holds 4 validation images where the ground truth in",
    ),
    "not the classes of the training set": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 3, 4], wnids=(*WNIDS[:5], "n00000007")),
        "--devkit and --train do not belong together",
    ),
    "wnids that are none": (
        lambda s, tmp: devkit_bytes(tmp, [1, 2, 3, 4], wnids=(*WNIDS[:5], "../../x")),
        "the table of classes in meta.mat of",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_DEVKIT)
def test_what_is_no_devkit_is_refused(wrong, source, tmp_path, capsys):
    make, words = WRONG_DEVKIT[wrong]
    file = tmp_path / "file.tar.gz"
    file.write_bytes(make(source, tmp_path))
    arguments = ["--train", str(source.train), "--val", str(source.val), "--devkit", str(file)]
    message = refusal(arguments, tmp_path, capsys).replace(f"--devkit {file} and", "--devkit and")
    assert words in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to convert: give --train, or --val with --devkit, or all three"),
        (["--devkit", "{devkit}"], "nothing to convert"),
        (["--val", "{val}"], "--val needs --devkit ILSVRC2012_devkit_t12.tar.gz, which holds the labels"),
        (["--train", "/nowhere.tar"], "/nowhere.tar cannot be read: No such file or directory"),
        (["--val", "{val}", "--devkit", "/nowhere"], "--devkit /nowhere cannot be read: No such file or directory"),
        (["--train", "{folder}"], "is converted by `python -m data_tools imagefolder --input {folder}`"),
        (
            ["--val", "{folder}", "--devkit", "{devkit}"],
            "`python -m data_tools imagefolder --input {folder} --split validation --devkit FILE`",
        ),
        (["--val", "{val}", "--devkit", "{devkit}", "--shards", "2"], "without --train, give --val-shards"),
        (["--train", "{train}", "--val-shards", "2"], "without --val, give --shards"),
        (["--train", "{train}", "--shards", "9"], "9 shards are more than the 6 train images: ask for fewer"),
    ],
)
def test_command_lines_that_cannot_be_meant_are_refused(arguments, words, source, tmp_path, capsys):
    names = {"train": source.train, "val": source.val, "devkit": source.devkit, "folder": source.train.parent}
    filled = [argument.format(**names) for argument in arguments]
    assert words.format(**names) in refusal(filled, tmp_path, capsys)
