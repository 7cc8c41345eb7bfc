"""One shard, written whole or not at all.

The bytes are those that webdataset's TarWriter would write (a test holds it to that). `tarfile` writes them, because
importing webdataset imports torch, which costs every worker seconds and hundreds of megabytes."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.images import shard_image
from data_tools.samples import SourceImage
from trainer.data.decode import UndecodableImage
from trainer.data.tar_members import shown
from trainer.errors import BadInput
from trainer.files import replace_file


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written: where, which samples in which order, and the shorter side to which images are resized."""

    path: Path
    images: Sequence[SourceImage]
    keys: Sequence[str]
    short_side: int | None = None


def write_shard(task: ShardTask) -> None:
    """Writes the members KEY.cls, KEY.jpg, KEY.json of every sample. Time, owner and mode are constants, so that equal
    samples give equal bytes.

    Raises BadInput if an image cannot be read, and OSError if the shard cannot be written."""
    with replace_file(task.path) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, key in zip(task.images, task.keys, strict=True):
            for extension, content in _members(image, task.short_side).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                info.mode = 0o444
                tar.addfile(info, io.BytesIO(content))


def _members(source: SourceImage, short_side: int | None) -> dict[str, bytes]:
    """A sample's members by extension."""
    try:
        image = shard_image(source.read(), short_side)
    except (OSError, UndecodableImage) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(
            f"{shown(source.name)} was usable when the images were checked and is not now ({reason}): "
            "leave the input as it is while it is converted, and run the command again to go on"
        ) from error
    facts: dict[str, Any] = {"filename": source.name, "label": source.label}
    if source.class_name:
        facts["class"] = source.class_name
    facts |= {"width": image.width, "height": image.height}
    if image.transcoded_from:
        facts["transcoded_from"] = image.transcoded_from
    if image.resized_from:
        facts["resized_from"] = image.resized_from
    return {"cls": str(source.label).encode(), "jpg": image.content, "json": json.dumps(facts).encode()}
