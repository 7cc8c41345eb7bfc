"""One shard: written whole or not at all, and described by reading it back.

The bytes are those that webdataset's TarWriter would write (a test holds it to that). `tarfile` writes them, because
importing webdataset imports torch, which costs every worker seconds and hundreds of megabytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.images import shard_image
from data_tools.samples import SourceImage
from trainer.data.shard_index import Shard
from trainer.data.tar_members import BLOCK, TarDamage, parse_member
from trainer.files import replace_file


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written: where, and which samples in which order."""

    path: Path
    images: Sequence[SourceImage]
    keys: Sequence[str]


def write_shard(task: ShardTask) -> None:
    """Writes the members KEY.cls, KEY.jpg, KEY.json of every sample. Time, owner and mode are constants, so that equal
    samples give equal bytes."""
    with replace_file(task.path) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, key in zip(task.images, task.keys, strict=True):
            for extension, content in _members(image).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                info.mode = 0o444
                tar.addfile(info, io.BytesIO(content))


def _members(source: SourceImage) -> dict[str, bytes]:
    """A sample's members by extension."""
    image = shard_image(source.path.read_bytes())
    facts: dict[str, str | int] = {"filename": source.name, "label": source.label}
    if source.class_name:
        facts["class"] = source.class_name
    facts |= {"width": image.width, "height": image.height}
    if image.transcoded_from:
        facts["transcoded_from"] = image.transcoded_from
    return {"cls": str(source.label).encode(), "jpg": image.content, "json": json.dumps(facts).encode()}


def describe_shard(path: Path) -> tuple[Shard, NDArray[np.int64]]:
    """A finished shard's entry in the index, and the byte range of each of its samples, int64 [samples, 2].

    Raises TarDamage if it is not a whole tar whose samples' members are adjacent."""
    digest = hashlib.sha256()
    ranges: list[list[int]] = []
    keys: list[str] = []
    with open(path, "rb") as file:
        while any(header := file.read(BLOCK)):
            member = parse_member(header, file.tell() - len(header))
            content = file.read(member.end - member.start)
            if len(content) < member.end - member.start:
                raise TarDamage(f"{path} ends inside '{member.name}'")
            digest.update(header + content)
            if keys and member.key == keys[-1]:
                ranges[-1][1] = member.end
            else:
                keys.append(member.key)
                ranges.append([member.header, member.end])
        digest.update(header + file.read())
        size = file.tell()
    if len(set(keys)) < len(keys):
        raise TarDamage(f"{path} holds samples whose members are not adjacent")
    shard = Shard(path.name, len(ranges), size, digest.hexdigest())
    return shard, np.array(ranges, dtype=np.int64).reshape(-1, 2)
