"""What a shard holds, found by reading it once, and whether training could read it.

The rules are WebDataset's: neighbouring members whose names agree up to the first dot of the base name are a sample.
A sample has one image (`.jpg`, `.jpeg`, `.png` or `.webp`, in any case). Its label is the number in `.cls`; without
`.cls` it has none, whatever other members, such as img2dataset's `.txt` and `.json`, may say."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainer.data.reader import IMAGE_EXTENSIONS, NO_LABEL
from trainer.data.shard_index import Shard
from trainer.data.tar_members import TarDamage, TarMember, members_of_archive, shown

_MAX_LABEL_BYTES = 20
_MAX_LABEL = 2**31 - 1
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class ShardScan:
    """A shard's entry in the index, the byte range of each sample, int64 [samples, 2], and its label, int64 [samples],
    -1 where there is none."""

    shard: Shard
    ranges: NDArray[np.int64]
    labels: NDArray[np.int64]


def describe_shard(path: Path) -> tuple[Shard, NDArray[np.int64]]:
    """`scan_shard` without the labels."""
    scan = scan_shard(path)
    return scan.shard, scan.ranges


def scan_shard(path: Path) -> ShardScan:
    """Reads a shard once for its sha256, and its headers and labels once more.

    Raises TarDamage with the shard's name if it is not a whole tar, or if a sample in it is one that training could not
    read or that another reader would see differently: without an image or with several, with members that are not
    adjacent, with a label that is no number. Raises OSError if the file cannot be read."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        try:
            _check_plain(file, size)
            samples = _samples(file, size)
        except TarDamage as error:
            raise TarDamage(f"{path}: {error}") from error
    return ShardScan(
        Shard(path.name, len(samples), size, digest),
        np.array([(sample.first, sample.end) for sample in samples], dtype=np.int64).reshape(-1, 2),
        np.array([sample.label for sample in samples], dtype=np.int64),
    )


@dataclass
class _Sample:
    key: str
    first: int
    end: int
    extensions: list[str] = field(default_factory=list)
    label: int = NO_LABEL

    @property
    def num_images(self) -> int:
        return sum(extension in IMAGE_EXTENSIONS for extension in self.extensions)

    def add(self, member: TarMember, file: BinaryIO) -> None:
        if member.extension in self.extensions:
            raise TarDamage(f"sample {shown(self.key)} at byte {self.first} holds .{member.extension} twice")
        self.extensions.append(member.extension)
        self.end = member.end
        if member.extension == "cls":
            file.seek(member.start)
            self.label = _label(self, file.read(min(member.size, _MAX_LABEL_BYTES + 1)))


def _check_plain(file: BinaryIO, size: int) -> None:
    if size == 0:
        raise TarDamage("the file is empty")
    file.seek(0)
    start = file.read(8)
    for magic, name in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise TarDamage(
                f"compressed with {name}, and a compressed tar can only be read from its beginning: unpack it to a "
                "plain .tar (images hardly shrink anyway)"
            )


def _samples(file: BinaryIO, size: int) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    last = ""
    for member in members_of_archive(file, size):
        if member.key != last:
            if member.key in samples:
                raise TarDamage(
                    f"the members of sample {shown(member.key)} are not adjacent (one is at byte {member.header}): "
                    "write the tar anew, sorted by name (tar --sort=name)"
                )
            samples[member.key] = _Sample(member.key, member.header, member.end)
            last = member.key
        samples[member.key].add(member, file)
    if not samples:
        raise TarDamage("no samples in it: remove it")
    _check_images(list(samples.values()))
    return list(samples.values())


def _check_images(samples: list[_Sample]) -> None:
    """Raises TarDamage unless every sample has one image."""
    for fault, wrong in (
        (f"without an image (.{', .'.join(IMAGE_EXTENSIONS)})", [s for s in samples if s.num_images == 0]),
        ("with several images", [s for s in samples if s.num_images > 1]),
    ):
        if wrong:
            members = shown(", ".join(f".{extension}" for extension in wrong[0].extensions))
            raise TarDamage(
                f"{len(wrong)} of {len(samples)} samples {fault}, the first {shown(wrong[0].key)} at byte "
                f"{wrong[0].first} with {members}: write the shard anew without them"
            )


def _label(sample: _Sample, content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        label = NO_LABEL - 1
    if not NO_LABEL <= label <= _MAX_LABEL or len(content) > _MAX_LABEL_BYTES:
        raise TarDamage(
            f"the label of sample {shown(sample.key)} at byte {sample.first} is "
            f"{shown(content.decode('utf-8', 'replace'))}, not a class number: write it anew with numbers in .cls"
        )
    return label
