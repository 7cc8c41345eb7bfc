"""A sample on its way into a shard, and the names it gets there."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# USTAR keeps 100 bytes for a name; the longest extension that follows is `.json`.
MAX_KEY = 90


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image of a data set: the bytes `offset` to `offset + num_bytes` of a file, which is the image's own or an
    archive. `name` is its path within the data set, with slashes; it is a label and never opened. `modified_ns` is the
    file's time of modification; `class_name` is empty where there are no classes."""

    path: Path
    offset: int
    num_bytes: int
    modified_ns: int
    name: str
    label: int
    class_name: str

    def read(self, first: int = 0, count: int | None = None) -> bytes:
        """The image's bytes from `first` on, `count` of them at most.

        Raises OSError, also if the file is shorter than it was when it was listed."""
        wanted = max(0, min(self.num_bytes - first, self.num_bytes if count is None else count))
        with open(self.path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), wanted, self.offset + first)
        if len(content) < wanted:
            raise OSError(0, "it has become shorter", str(self.path))
        return content


@dataclass(frozen=True)
class SourceSplit:
    """A split to be converted: its name, its images, its class names in the order of the labels (empty if it has none)
    and into how many shards it goes (None: as many as ConversionOptions say)."""

    name: str
    images: Sequence[SourceImage]
    classes: Sequence[str]
    num_shards: int | None


def unique_keys(names: Sequence[str]) -> list[str]:
    """A key for each path: its base name without extension; with a digest of the whole path added where several files
    share that, or where it is too long. WebDataset ends a key at its first dot, so dots become underscores, as does
    everything that a file system or a shell might take for more than a letter."""
    stems = [re.sub(r"[^A-Za-z0-9_-]", "_", Path(name).stem) for name in names]
    # Some file systems and readers hold A and a for the same.
    uses = Counter(stem.lower() for stem in stems)
    return [
        stem if uses[stem.lower()] == 1 and len(stem) <= MAX_KEY else f"{stem[: MAX_KEY - 17]}-{_digest(name)}"
        for stem, name in zip(stems, names, strict=True)
    ]


def shuffled(images: Sequence[SourceImage], seed: int) -> list[SourceImage]:
    """The images in an order that only the seed and their names decide."""
    return sorted(images, key=lambda image: hashlib.sha256(_raw(f"{seed}/{image.name}")).digest())


def _digest(name: str) -> str:
    return hashlib.sha256(_raw(name)).hexdigest()[:16]


def _raw(name: str) -> bytes:
    """A file name need not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape")
