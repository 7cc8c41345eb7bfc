"""A sample on its way into a shard, and the names it gets there."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# USTAR keeps 100 bytes for a name; the longest extension that follows is `.json`.
MAX_KEY = 90


@dataclass(frozen=True)
class SourceImage:
    """An image file of a data set. `name` is its path within the data set, with slashes; `class_name` is empty where
    there are no classes."""

    path: Path
    name: str
    num_bytes: int
    modified_ns: int
    label: int
    class_name: str


def unique_keys(names: Sequence[str]) -> list[str]:
    """A key for each path: its base name without extension; with a digest of the whole path added where several files
    share that, or where it is too long. WebDataset ends a key at its first dot, so dots become underscores."""
    stems = [re.sub(r"[^A-Za-z0-9_-]", "_", Path(name).stem) for name in names]
    # Some file systems and readers hold A and a for the same.
    uses = Counter(stem.lower() for stem in stems)
    return [
        stem if uses[stem.lower()] == 1 and len(stem) <= MAX_KEY else f"{stem[: MAX_KEY - 17]}-{_digest(name)}"
        for stem, name in zip(stems, names, strict=True)
    ]


def shuffled(images: Sequence[SourceImage], seed: int) -> list[SourceImage]:
    """The images in an order that only the seed and their names decide."""
    return sorted(images, key=lambda image: hashlib.sha256(f"{seed}/{image.name}".encode()).digest())


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
