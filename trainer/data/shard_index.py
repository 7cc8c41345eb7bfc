"""The index beside the shards: what is where, so that a reader can go straight to any sample.

For a split called `train`:
- `train.json`: the shards with their sample counts, sizes and sha256, in the layout of a `wids` index, and the class
  names and the source files that were left out;
- `train.offsets.npy`: int64 [samples, 2], the byte range of each sample in its shard, from the header of its first
  member to the padding of its last. Samples of a shard follow one another without a gap, so neighbours are one
  sequential read;
- `_info.json` for timm and `sizes.json` for open_clip, which other splits in the directory share.

NumPy and the standard library only: the command-line tools import this without waiting for torch."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import BadInput
from trainer.files import replace_file

_KIND = "wids-shard-index-v1"


@dataclass(frozen=True)
class Shard:
    """One tar of the index; `path` is relative to the index, or absolute."""

    path: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Shards of one split. Cheap to send to another process: the offsets stay on disk until someone asks for them."""

    file: Path
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] | None
    left_out: dict[str, str]  # source files that were no usable images, with the reason

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> "ShardIndex":
        """The index at `path` (a directory that holds `{split}.json`, or such a file itself).

        Looks at every shard's size, which takes milliseconds, and reads none. Raises BadInput naming the first file
        that is missing or is not what the index says."""
        file = Path(path)
        if file.is_dir():
            file = file / f"{split}.json"
        if not file.is_file():
            raise BadInput(
                f"no shard index at {file}: give the directory that `python -m data_tools` wrote, or its {split}.json"
            )
        index = cls(file, *_parse(file))
        index._check_shards()
        index._check_offsets()
        return index

    @property
    def split(self) -> str:
        return self.file.stem

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @cached_property
    def shard_lengths(self) -> NDArray[np.int64]:
        """Samples per shard, int64 [shards]."""
        return np.array([shard.num_samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """First byte and end of each sample in its shard, int64 [samples, 2], mapped from disk."""
        file = offsets_file(self.file)
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"cannot read the byte ranges in {file} ({error}): write the index anew") from error

    @cached_property
    def content_hash(self) -> str:
        """Identifies the samples and their order: sha256 over every shard's count, size and sha256."""
        lines = (f"{shard.num_samples} {shard.num_bytes} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard that holds a sample, and the sample's place in it."""
        shard = int(np.searchsorted(self._shard_ends, sample, side="right"))
        return shard, sample - int(self._shard_ends[shard] - self.shard_lengths[shard])

    def shard_path(self, shard: int) -> Path:
        return self.file.parent / self.shards[shard].path

    @cached_property
    def _shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.shard_lengths)

    def _check_shards(self) -> None:
        for number, shard in enumerate(self.shards):
            path = self.shard_path(number)
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise BadInput(f"shard {path} of {self.file} cannot be read: {error.strerror}") from error
            if size != shard.num_bytes:
                raise BadInput(
                    f"shard {path} has {size} bytes where {self.file.name} says {shard.num_bytes}: "
                    "copy it again, or write the index anew"
                )

    def _check_offsets(self) -> None:
        offsets = self.offsets
        if offsets.shape != (self.num_samples, 2) or offsets.dtype != np.int64:
            raise BadInput(
                f"{offsets_file(self.file)} holds {offsets.dtype} {list(offsets.shape)} where {self.file.name} wants "
                f"int64 [{self.num_samples}, 2]: they belong to different shards; write the index anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "shards": self.shards, "classes": self.classes, "left_out": self.left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def offsets_file(index_file: Path) -> Path:
    """Where the byte ranges of an index lie: `train.json` → `train.offsets.npy`."""
    return index_file.with_name(f"{index_file.stem}.offsets.npy")


def write_index(
    directory: Path,
    split: str,
    shards: Sequence[Shard],
    offsets: NDArray[np.int64],
    classes: Sequence[str] | None,
    left_out: dict[str, str],
) -> ShardIndex:
    """Writes all four index files, `{split}.json` last: where it stands, everything it speaks of is complete."""
    filenames = [shard.path for shard in shards]
    _update_json(directory / "_info.json", lambda info: _timm_info(info, directory.name, split, shards))
    _update_json(directory / "sizes.json", lambda sizes: sizes | {s.path: s.num_samples for s in shards})
    file = directory / f"{split}.json"
    with replace_file(offsets_file(file)) as stream:
        np.save(stream, offsets.astype(np.int64), allow_pickle=False)
    index = {
        "__kind__": _KIND,
        "wids_version": 1,
        "name": f"{directory.name}-{split}",
        "shardlist": [
            {"url": name, "nsamples": s.num_samples, "filesize": s.num_bytes, "sha256": s.sha256}
            for name, s in zip(filenames, shards, strict=True)
        ],
    }
    if classes is not None:
        index["classes"] = list(classes)
    if left_out:
        index["left_out"] = left_out
    _write_json(file, index)
    return ShardIndex.open(file)


def _parse(file: Path) -> tuple[tuple[Shard, ...], tuple[str, ...] | None, dict[str, str]]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        shards = tuple(
            Shard(entry["url"], int(entry["nsamples"]), int(entry["filesize"]), str(entry["sha256"]))
            for entry in index["shardlist"]
        )
        classes = tuple(index["classes"]) if "classes" in index else None
        left_out = dict(index.get("left_out", {}))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{file} is not a shard index ({error}): write it anew") from error
    except KeyError as error:
        raise BadInput(f"{file} lacks {error}, which the reader needs: write the index anew") from error
    if not shards:
        raise BadInput(f"{file} lists no shards: write the index anew")
    return shards, classes, left_out


def _timm_info(info: dict[str, Any], name: str, split: str, shards: Sequence[Shard]) -> dict[str, Any]:
    entry = {
        "name": split,
        "num_samples": sum(shard.num_samples for shard in shards),
        "filenames": [shard.path for shard in shards],
        "shard_lengths": [shard.num_samples for shard in shards],
    }
    return {"name": name, "version": "1.0"} | info | {"splits": info.get("splits", {}) | {split: entry}}


def _update_json(file: Path, change: Any) -> None:
    """Rewrites a JSON file that several splits share, keeping what the others wrote."""
    present = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    _write_json(file, change(present))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    with replace_file(file) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
