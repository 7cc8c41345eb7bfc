"""The index beside the shards: what is where, so that a reader can go straight to any sample.

For a split called `train`:
- `train.json`: the shards with their sample counts, sizes and sha256, in the layout of a `wids` index, and the class
  names and the source files that were left out;
- `train.offsets.npy`: int64 [samples, 2], the byte range of each sample in its shard, from the header of its first
  member to the padding of its last. Samples of a shard follow one another without a gap, so neighbours are one
  sequential read;
- `_info.json` for timm and `sizes.json` for open_clip, which other splits in the directory share.

The index may lie behind a URL, and so may shards of a local index. NumPy and the standard library only: the
command-line tools import this without waiting for torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.errors import ShardError
from trainer.data.read_ahead import read_ahead
from trainer.data.storage import Storage
from trainer.data.urls import join_url, local_path, redact, scheme_of
from trainer.errors import BadInput
from trainer.files import replace_file

_KIND = "wids-shard-index-v1"
_PARALLEL_CHECKS = 32  # shards whose size is asked for at the same time


@dataclass(frozen=True)
class Shard:
    """One tar of the index; `path` is relative to the index, absolute, or a URL."""

    path: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Shards of one split. Cheap to send to another process: the offsets stay on disk until someone asks for them.

    `file` is the index on this machine; of one behind a URL, `url` says where, and `file` is a copy that lives as long
    as the object that fetched it."""

    file: Path
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] | None
    left_out: dict[str, str]  # source files that were no usable images, with the reason
    url: str | None = None
    _fetched: "TemporaryDirectory[str] | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        split: str = "train",
        *,
        storage: Storage | None = None,
        check_remote_shards: bool = True,
    ) -> "ShardIndex":
        """The index at `path` (a directory that holds `{split}.json`, or such a file itself; a path or a URL).

        Asks for every shard's size, which takes milliseconds on a disk and a request for each shard behind a URL
        (`check_remote_shards`: one process of a job is enough), and reads none. Raises BadInput naming the first file
        that is missing or is not what the index says."""
        storage = storage or Storage()
        index = cls.read(path, split, storage)
        index._check_shards(storage, check_remote_shards)
        index._check_offsets()
        return index

    @classmethod
    def read(cls, path: str | Path, split: str, storage: Storage) -> "ShardIndex":
        """`open` without the look at the shards and at the byte ranges, for those who report what is wrong there."""
        if scheme_of(str(path)) is None:
            file = local_path(path)
            try:
                if file.is_dir():
                    file = file / f"{split}.json"
                found = file.is_file()
            except OSError as error:  # a folder that may not be entered
                raise BadInput(f"{file} cannot be read ({error.strerror}): mend that, or give other shards") from None
            if not found:
                raise BadInput(
                    f"no shard index at {file}: give the folder that `python -m data_tools` wrote, or its {split}.json"
                )
            return cls(file, *_parse(file, str(file)))
        url = str(path)
        if not url.partition("?")[0].endswith(".json"):
            url = join_url(url, f"{split}.json")
        fetched = _fetch(url, storage)
        file = Path(fetched.name) / _base_name(url)
        return cls(file, *_parse(file, redact(url)), url, fetched)

    @property
    def name(self) -> str:
        """The index for messages: its path, or its URL without secrets."""
        return str(self.file) if self.url is None else redact(self.url)

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
            raise BadInput(
                f"cannot read {file.name}, the byte ranges of {self.name} ({error}): write the index anew"
            ) from error

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
        """Where a shard of an index on this machine lies."""
        return self.file.parent / self.shards[shard].path

    def shard_location(self, shard: int) -> str:
        """Path or URL of a shard, for `Storage`."""
        path = self.shards[shard].path
        if self.url is None:
            return path if scheme_of(path) else str(self.shard_path(shard))
        return path if scheme_of(path) or path.startswith("/") else join_url(_folder(self.url), path)

    @cached_property
    def _shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.shard_lengths)

    def _check_shards(self, storage: Storage, check_remote: bool) -> None:
        locations = [self.shard_location(number) for number in range(len(self.shards))]
        checked = [n for n, location in enumerate(locations) if check_remote or scheme_of(location) is None]
        found = read_ahead(storage.facts, (locations[number] for number in checked), _PARALLEL_CHECKS)
        for number in checked:
            try:
                size = next(found).size
            except ShardError as error:
                raise BadInput(
                    f"shard {error}; {self.name} lists it: bring it back, or write the index anew"
                ) from error
            if size not in (self.shards[number].num_bytes, None):
                raise BadInput(
                    f"shard {redact(locations[number])} has {size} bytes where {self.file.name} says "
                    f"{self.shards[number].num_bytes}: copy it again, or write the index anew"
                )

    def _check_offsets(self) -> None:
        offsets = self.offsets
        if offsets.shape != (self.num_samples, 2) or offsets.dtype != np.int64:
            raise BadInput(
                f"{offsets_file(self.file).name} of {self.name} holds {offsets.dtype} {list(offsets.shape)} where "
                f"{self.file.name} wants int64 [{self.num_samples}, 2]: they belong to different shards; write the "
                "index anew"
            )
        sizes = np.repeat([shard.num_bytes for shard in self.shards], self.shard_lengths)
        outside = (offsets[:, 0] < 0) | (offsets[:, 0] >= offsets[:, 1]) | (offsets[:, 1] > sizes)
        if outside.any():
            sample = int(np.argmax(outside))
            shard, _ = self.locate(sample)
            raise BadInput(
                f"{offsets_file(self.file).name} of {self.name} places sample {sample} at bytes "
                f"{offsets[sample, 0]}-{offsets[sample, 1]} of {self.shards[shard].path}, which has "
                f"{self.shards[shard].num_bytes}: write the index anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("file", "shards", "classes", "left_out", "url")
        return {name: getattr(self, name) for name in kept} | {"_fetched": None}

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
    """Writes all four index files, `{split}.json` last: where it stands, everything it speaks of is complete.

    open_clip looks for base names in `sizes.json`, so base names that shards of several folders share are left out of
    it: no count would be right for all of them."""
    filenames = [shard.path for shard in shards]
    _update_json(directory / "_info.json", lambda info: _timm_info(info, directory.name, split, shards))
    _update_json(directory / "sizes.json", lambda sizes: _open_clip_sizes(sizes, shards))
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


def _fetch(url: str, storage: Storage) -> "TemporaryDirectory[str]":
    """A temporary directory with copies of an index and its byte ranges, which goes when the object does."""
    try:
        contents = {_base_name(url): storage.read_file(url)}
        offsets = f"{Path(_base_name(url)).stem}.offsets.npy"
        contents[offsets] = storage.read_file(join_url(_folder(url), offsets))
    except ShardError as error:
        raise BadInput(f"no shard index: {error}; give the URL of a folder that holds one, or of its .json") from error
    folder = TemporaryDirectory(prefix="shard-index-")
    for name, content in contents.items():
        (Path(folder.name) / name).write_bytes(content)
    return folder


def _folder(url: str) -> str:
    """The URL of the folder that a file lies in; a query stays."""
    path, question, query = url.partition("?")
    return path.rpartition("/")[0] + question + query


def _base_name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _parse(file: Path, name: str) -> tuple[tuple[Shard, ...], tuple[str, ...] | None, dict[str, str]]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        shards = tuple(
            Shard(entry["url"], int(entry["nsamples"]), int(entry["filesize"]), str(entry["sha256"]))
            for entry in index["shardlist"]
        )
        classes = tuple(index["classes"]) if "classes" in index else None
        left_out = dict(index.get("left_out", {}))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{name} is not a shard index ({error}): write it anew") from error
    except KeyError as error:
        raise BadInput(f"{name} lacks {error}, which the reader needs: write the index anew") from error
    if not shards:
        raise BadInput(f"{name} lists no shards: write the index anew")
    return shards, classes, left_out


def _timm_info(info: dict[str, Any], name: str, split: str, shards: Sequence[Shard]) -> dict[str, Any]:
    entry = {
        "name": split,
        "num_samples": sum(shard.num_samples for shard in shards),
        "filenames": [shard.path for shard in shards],
        "shard_lengths": [shard.num_samples for shard in shards],
    }
    return {"name": name, "version": "1.0"} | info | {"splits": info.get("splits", {}) | {split: entry}}


def _open_clip_sizes(sizes: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    names = Counter(Path(shard.path).name for shard in shards)
    sizes = sizes | {Path(shard.path).name: shard.num_samples for shard in shards}
    return {name: size for name, size in sizes.items() if names[name] <= 1}


def _update_json(file: Path, change: Any) -> None:
    """Rewrites a JSON file that several splits share, keeping what the others wrote."""
    try:
        present = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not isinstance(present, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise BadInput(f"{file} is damaged ({error}): delete it and run again, for every split") from error
    _write_json(file, change(present))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    with replace_file(file) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
