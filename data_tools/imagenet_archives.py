"""The images in ILSVRC2012's two archives, as byte ranges of them, and refusals of all that people give by mistake.

ILSVRC2012_img_train.tar holds a tar for each class, `n01440764.tar`, with that class's `n01440764_10026.JPEG` and so
on; ILSVRC2012_img_val.tar holds `ILSVRC2012_val_00000001.JPEG` and so on, without labels. Images get the names that
they have once these are unpacked, so that shards made from a folder are the same."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data_tools.archives import Archive, Member, open_archive
from data_tools.devkit import Devkit
from data_tools.samples import SourceImage
from trainer.data.tar_members import shown
from trainer.errors import BadInput

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_CLASS_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")
VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TEST_IMAGE = re.compile(r"ILSVRC2012_test_\d{8}\.JPEG")
# Header after header is read, tiny reads with long gaps: on a network file system they have to overlap.
_SCAN_THREADS = 8


def scan_train(path: Path) -> tuple[list[SourceImage], list[str]]:
    """The training images and the sorted wnids, in whose order the labels count.

    Raises BadInput if this is not ILSVRC2012_img_train.tar, or not all of it."""
    with _scanning(path, "--train") as (archive, progress):
        inner: dict[str, Member] = {}
        for member in archive.members():
            match = _CLASS_TAR.fullmatch(member.name)
            if match is None:
                raise BadInput(f"--train {path} {_mistaken_for_train(member.name)}")
            if match[1] in inner:
                raise BadInput(f"--train {path} holds {member.name} twice: it is not the official archive")
            inner[match[1]] = member
        classes = sorted(inner)
        if not classes:
            raise BadInput(f"--train {path} holds no class's tar: it is not ILSVRC2012_img_train.tar")

        def scan_class(label: int) -> list[SourceImage]:
            return _class_images(archive, inner[classes[label]], label, classes[label])

        images = []
        with ThreadPoolExecutor(_SCAN_THREADS) as threads:
            for label, found in enumerate(threads.map(scan_class, range(len(classes)))):
                images += found
                progress.update(inner[classes[label]].size)
    return images, classes


def scan_validation(path: Path, devkit: Devkit) -> list[SourceImage]:
    """The validation images, labelled by the devkit.

    Raises BadInput if this is not ILSVRC2012_img_val.tar, or not all of it, or not the one that the devkit is of."""
    with _scanning(path, "--val") as (archive, progress):
        members: dict[int, Member] = {}
        for member in archive.members():
            match = VALIDATION_IMAGE.fullmatch(member.name)
            if match is None:
                raise BadInput(f"--val {path} {_mistaken_for_validation(member.name)}")
            members[int(match[1])] = member
            progress.update(member.size)
        devkit.check_numbers(members, f"--val {path}")
        return [
            _source_image(archive, member, member.name, *devkit.validation_class(number))
            for number, member in members.items()
        ]


@contextmanager
def _scanning(path: Path, option: str) -> Iterator[tuple[Archive, tqdm]]:
    if path.is_dir():
        more = " --split validation --devkit FILE" if option == "--val" else ""
        raise BadInput(
            f"{option} {path} is a folder: an archive that is unpacked already is converted by "
            f"`python -m data_tools imagefolder --input {path}{more}`"
        )
    with (
        open_archive(path) as archive,
        tqdm(total=archive.size, unit="B", unit_scale=True, desc=f"scanning {path.name}") as progress,
    ):
        yield archive, progress
        progress.update(archive.size - progress.n)  # headers and filling


def _class_images(archive: Archive, inner: Member, label: int, wnid: str) -> list[SourceImage]:
    images = []
    for member in archive.members_of(inner):
        match = _CLASS_IMAGE.fullmatch(member.name)
        if match is None or match[1] != wnid:
            raise BadInput(
                f"{inner.name} in {archive.path} holds {shown(member.name)}, which is no image of that class: "
                "it is not the official archive"
            )
        images.append(_source_image(archive, member, f"{wnid}/{member.name}", label, wnid))
    if not images:
        raise BadInput(f"{inner.name} in {archive.path} holds no images: download it again")
    return images


def _source_image(archive: Archive, member: Member, name: str, label: int, wnid: str) -> SourceImage:
    return SourceImage(archive.path, member.start, member.size, archive.modified_ns, name, label, wnid)


def _mistaken_for_train(name: str) -> str:
    base = name.rpartition("/")[2]
    if VALIDATION_IMAGE.fullmatch(base):
        return "is the validation set: give it as --val, with --devkit"
    if _CLASS_IMAGE.fullmatch(base):
        return (
            f"holds images ({shown(name)}) where ILSVRC2012_img_train.tar holds a tar for each class: "
            "it is one class's tar, task 3's, or packed anew; give the official archive, or unpack this one into class "
            "folders for `python -m data_tools imagefolder`"
        )
    return _never_right(name)


def _mistaken_for_validation(name: str) -> str:
    base = name.rpartition("/")[2]
    if _CLASS_TAR.fullmatch(base) or _CLASS_IMAGE.fullmatch(base):
        return "is a training set: give ILSVRC2012_img_train.tar as --train"
    if VALIDATION_IMAGE.fullmatch(base):
        return f"holds {shown(name)}, where the official archive has no folders: unpack it for imagefolder"
    return _never_right(name)


def _never_right(name: str) -> str:
    if _TEST_IMAGE.fullmatch(name.rpartition("/")[2]):
        return "is the test set, whose labels were never published: the training and validation sets can be converted"
    return (
        f"holds {shown(name)}: it is none of ILSVRC2012's archives of images; images of other sources are "
        "converted by `python -m data_tools imagefolder`, once unpacked"
    )
