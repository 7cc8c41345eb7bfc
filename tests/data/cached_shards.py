"""What the tests of the cache ask for and look at: ranges of shards, requests that came to a store, files on disk."""

import errno
import fcntl
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.data.http_store import HttpStore, Request
from trainer.data.cache import CachedStorage, _name
from trainer.data.cache_folder import PART, CacheFolder, Claim
from trainer.data.config import DataConfig
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage

CHUNK = 16384
VICTIM, LARGEST = 3, 5  # shards
ROOM = 10**9


def new_storage(folder: Path, bound: int = ROOM) -> CachedStorage:
    """As a process has it that has read nothing yet."""
    return CachedStorage(DataConfig(retries=0), CacheFolder(folder, bound))


def read(storage: Storage, index: ShardIndex, number: int, first: int, end: int) -> bytes:
    shard = index.shards[number]
    return storage.read_range(index.shard_location(number), first, end, shard.num_bytes, shard.sha256)


def bytes_of(copy: Path, index: ShardIndex, number: int, first: int, end: int) -> bytes:
    return (copy / index.shards[number].path).read_bytes()[first:end]


def hold(folder: Path, index: ShardIndex, number: int, chunk: int) -> Claim:
    """As another process does that is fetching a chunk."""
    claim = CacheFolder(folder, ROOM).claim(name_of(index, number, chunk))
    assert claim is not None
    return claim


def name_of(index: ShardIndex, number: int, chunk: int) -> str:
    shard = index.shards[number]
    return _name(index.shard_location(number), shard.num_bytes, shard.sha256, chunk)


def tar_reads(store: HttpStore) -> list[Request]:
    return [request for request in store.requests if request.method == "GET" and request.name.endswith(".tar")]


def chunks_fetched(store: HttpStore, chunk: int = CHUNK) -> Counter:
    """How often each chunk of each shard was sent: (shard's name, number) → times."""
    counts: Counter = Counter()
    for request in tar_reads(store):
        assert request.first is not None
        assert request.end is not None
        assert request.first % chunk == 0
        counts.update((request.name, number) for number in range(request.first // chunk, -(-request.end // chunk)))
    return counts


def all_chunks(copy: Path, chunk: int = CHUNK) -> set[tuple[str, int]]:
    sizes = {path.name: path.stat().st_size for path in copy.glob("*.tar")}
    return {(name, number) for name, size in sizes.items() for number in range(-(-size // chunk))}


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "ranges").iterdir() if len(path.name) == 40)


def parts(folder: Path) -> list[Path]:
    return list((folder / "ranges").glob("*" + PART))


def bytes_on_disk(folder: Path) -> int:
    """Of entries and parts, at a moment in which nobody changes their sizes and names."""
    total = 0
    with open(folder / "ranges" / "ledger", "rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        for path in [*entries(folder), *parts(folder)]:
            with suppress(FileNotFoundError):  # a part that was given up
                total += path.stat().st_size
    return total


def be_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes no byte more."""

    def refuse(claim: Claim, *parts: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Claim, "_write", refuse)


def be_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path, flags, *mode, **options):
        if flags & os.O_CREAT and str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
