"""Several processes and threads share a cache: one fetches a chunk, the others wait for it, and the bound holds."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trainer.data.cache
from tests.data.cache_reader import Reader, Settings
from tests.data.cached_shards import (
    CHUNK,
    LARGEST,
    ROOM,
    VICTIM,
    all_chunks,
    bytes_of,
    bytes_on_disk,
    chunks_fetched,
    entries,
    hold,
    new_storage,
    parts,
    read,
    tar_reads,
)
from tests.data.http_store import HttpStore
from trainer.data.cache_folder import CacheFolder
from trainer.data.errors import ShardError
from trainer.data.shard_index import ShardIndex

pytestmark = pytest.mark.usefixtures("small_chunks")


def settings_of(store: HttpStore, folder: Path, **changes) -> Settings:
    fields = {"url": store.url, "shards": str(store.folder), "folder": str(folder), "bound": ROOM, "chunk": CHUNK}
    return Settings(**(fields | changes))


@pytest.fixture
def readers() -> Iterator[Callable[[Settings, int], list[Reader]]]:
    """Starts processes, which begin together when all of them are ready. None outlives the test."""
    started: list[Reader] = []

    def start(settings: Settings, count: int) -> list[Reader]:
        new = [Reader(settings) for _ in range(count)]
        started.extend(new)
        for reader in new:
            reader.wait_for("ready")
        for reader in new:
            reader.begin()
        return new

    yield start
    for reader in started:
        if reader.runs():
            reader.kill()


def test_processes_and_threads_fetch_every_chunk_once_among_them(store, copy, folder, readers):
    for reader in readers(settings_of(store, folder), 3):
        assert reader.finish() == (0, "")
    assert chunks_fetched(store) == dict.fromkeys(all_chunks(copy), 1)
    assert len(entries(folder)) == len(all_chunks(copy))
    assert not parts(folder)
    (late,) = readers(settings_of(store, folder), 1)
    assert late.finish() == (0, "")
    assert chunks_fetched(store) == dict.fromkeys(all_chunks(copy), 1)


def test_the_bound_holds_at_every_moment_while_many_write_and_evict(store, copy, folder, readers):
    bound = 12 * CHUNK
    started = readers(settings_of(store, folder, bound=bound), 3)
    seen = []
    while any(reader.runs() for reader in started):
        seen.append(bytes_on_disk(folder))
        time.sleep(0.001)
    for reader in started:
        assert reader.finish() == (0, "")
    assert len(seen) > 20
    assert max(seen) <= bound
    assert max(seen) > 0.8 * bound
    assert sum(chunks_fetched(store).values()) > len(all_chunks(copy))  # some had gone and were fetched again
    assert not parts(folder)


def test_who_is_killed_in_the_middle_of_a_write_holds_nobody_up(store, copy, folder, readers, monkeypatch):
    index = ShardIndex.open(store.url)
    (victim,) = readers(settings_of(store, folder, threads=1, hang=True), 1)
    victim.wait_for("writing")
    ((name, number), *_) = sorted(chunks_fetched(store))
    shard = next(n for n, shard in enumerate(index.shards) if shard.path == name)
    (part,) = [path for path in parts(folder) if path.stat().st_size]
    assert not entries(folder)
    storage, waiting = new_storage(folder), threading.Event()
    wait = storage._closed.wait
    monkeypatch.setattr(storage._closed, "wait", lambda seconds: waiting.set() or wait(seconds))
    first, end = number * CHUNK, min((number + 1) * CHUNK, index.shards[shard].num_bytes)
    got: list[bytes] = []
    other = threading.Thread(target=lambda: got.append(read(storage, index, shard, first, end)))
    other.start()
    assert waiting.wait(60)
    assert chunks_fetched(store)[name, number] == 1  # the other waits for it
    victim.kill()
    other.join(60)
    assert got == [bytes_of(copy, index, shard, first, end)]
    assert chunks_fetched(store)[name, number] == 2
    assert part.with_suffix("") in entries(folder)
    CacheFolder(folder, ROOM).prepare()
    assert not parts(folder)
    for reader in readers(settings_of(store, folder), 2):
        assert reader.finish() == (0, "")


def test_a_disk_that_takes_no_more_ends_no_process_and_is_told_of_once(store, copy, folder, readers):
    ended = [reader.finish() for reader in readers(settings_of(store, folder, file_limit=CHUNK // 2), 2)]
    assert [code for code, _ in ended] == [0, 0]
    assert "".join(errors for _, errors in ended).splitlines() == [
        f"data.cache {folder}: File too large; shards are read without it for the time being"
    ]
    assert not parts(folder)


def test_who_waits_stops_when_the_loader_closes(store, folder):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    claim = hold(folder, index, VICTIM, 0)
    storage.close()
    with pytest.raises(ShardError, match=r"train-00003.tar, bytes 0-100 was not read: the loader closed"):
        read(storage, index, VICTIM, 0, 100)
    claim.release()


def test_who_waits_too_long_reads_without_the_cache(store, copy, folder, monkeypatch):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    claim = hold(folder, index, VICTIM, 0)
    monkeypatch.setattr(trainer.data.cache, "_PATIENCE", 0.05)
    assert read(storage, index, VICTIM, 10, CHUNK + 10) == bytes_of(copy, index, VICTIM, 10, CHUNK + 10)
    assert [(request.first, request.end) for request in tar_reads(store)][-1] == (10, CHUNK + 10)
    claim.release()


def test_what_nobody_holds_is_fetched_while_the_rest_is_waited_for(store, copy, folder, monkeypatch):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    claim = hold(folder, index, LARGEST, 1)
    monkeypatch.setattr(storage._closed, "wait", lambda seconds: claim.release())
    assert read(storage, index, LARGEST, 0, 4 * CHUNK) == bytes_of(copy, index, LARGEST, 0, 4 * CHUNK)
    asked = [(request.first // CHUNK, request.end // CHUNK) for request in tar_reads(store)]
    assert asked == [(0, 1), (2, 4), (1, 2)]  # neighbours in one request


def test_a_store_that_fails_leaves_no_claim_behind(store, folder):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    store.fault = lambda request: "503"
    with pytest.raises(ShardError, match="503"):
        read(storage, index, VICTIM, 0, CHUNK)
    assert not parts(folder)
    assert not entries(folder)
