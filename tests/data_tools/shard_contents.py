"""What is in a directory of shards, as a plain tar reader sees it."""

import json
import tarfile
from pathlib import Path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def members(directory: Path, split: str = "train") -> dict[str, dict[str, bytes]]:
    """The members of a split's shards by key and extension."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(directory.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[extension] = file.read()
    return samples


def by_filename(directory: Path, split: str = "train") -> dict[str, dict[str, bytes]]:
    """The same by the name that the image had in its data set."""
    return {json.loads(sample["json"])["filename"]: sample for sample in members(directory, split).values()}
