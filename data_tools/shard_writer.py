"""One shard, written whole or not at all.

The bytes are those that webdataset's TarWriter would write (a test holds it to that). `tarfile` writes them, because
importing webdataset imports torch, which costs every worker seconds and hundreds of megabytes."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.images import shard_image
from data_tools.samples import SourceImage
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
