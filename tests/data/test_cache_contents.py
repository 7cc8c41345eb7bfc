"""What a cache gives is what the object store holds: after damage, after a shard was rewritten, and to every loader."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import trainer.data.cache
from tests.data.cached_shards import (
    CHUNK,
    LARGEST,
    VICTIM,
    all_chunks,
    bytes_of,
    bytes_on_disk,
    chunks_fetched,
    entries,
    name_of,
    new_storage,
    read,
    tar_reads,
)
from tests.data.test_loader import STEPS_PER_EPOCH, make_loader
from tests.data.test_remote import assert_same
from trainer.data.batches import MicroBatch
from trainer.data.cache import CachedStorage, _name, open_storage, prepare_cache
from trainer.data.cache_folder import CacheFolder
from trainer.data.config import DataConfig
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage


def flip_in_content(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def flip_in_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)


def flip_in_header(path: Path) -> None:
    """The border between version and content moves; their bytes, and so the checksum, are the same."""
    content = bytearray(path.read_bytes())
    content[12] ^= 1
    path.write_bytes(content)


def scramble_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 24 + path.read_bytes()[24:])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_header(path: Path) -> None:
    os.truncate(path, 5)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zero(path: Path) -> None:
    """As after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    """Another entry, sound in itself, under this name."""
    other = next(entry for entry in entries(path.parents[1]) if entry != path)
    shutil.copy(other, path)


@pytest.mark.parametrize(
    "damage",
    [flip_in_content, flip_in_version, flip_in_header, scramble_header, cut, cut_header, lengthen, zero, swap],
)
def test_a_damaged_entry_is_fetched_anew_and_replaced(store, copy, folder, small_chunks, caplog, damage):
    index = ShardIndex.open(store.url)
    expected = bytes_of(copy, index, LARGEST, 0, 3 * CHUNK)
    assert read(new_storage(folder), index, LARGEST, 0, 3 * CHUNK) == expected
    damage(folder / "ranges" / name_of(index, LARGEST, 1))
    before = len(tar_reads(store))
    storage = new_storage(folder)
    assert read(storage, index, LARGEST, 0, 3 * CHUNK) == expected
    assert [(r.first, r.end) for r in tar_reads(store)[before:]] == [(CHUNK, 2 * CHUNK)]
    assert read(new_storage(folder), index, LARGEST, 0, 3 * CHUNK) == expected
    assert len(tar_reads(store)) == before + 1
    assert [record.message for record in caplog.records] == [
        f"data.cache {folder}: something in it is damaged, and fetched anew: look at the disk if that comes again"
    ]


def rewrite(copy: Path, index: ShardIndex, number: int) -> bytes:
    """The shard with other bytes, as many as before, at its place."""
    path = copy / index.shards[number].path
    content = bytes(byte ^ 0x55 for byte in path.read_bytes())
    path.write_bytes(content)
    return content


def test_a_shard_written_anew_with_its_index_shares_nothing_with_the_old_one(store, copy, folder, small_chunks):
    old = ShardIndex.open(store.url)
    read(new_storage(folder), old, VICTIM, 0, CHUNK)
    content = rewrite(copy, old, VICTIM)
    index_file = copy / "train.json"
    index_file.write_text(index_file.read_text().replace(old.shards[VICTIM].sha256, "0" * 64))
    new = ShardIndex.open(store.url)
    assert new.shards[VICTIM].num_bytes == old.shards[VICTIM].num_bytes
    assert read(new_storage(folder), new, VICTIM, 0, CHUNK) == content[:CHUNK]


def test_shards_of_other_size_place_or_content_share_no_name():
    known = ("http://host/a.tar", 1000, "1234", 7)
    others = [("http://host/b.tar", 1000, "1234", 7), ("http://host/a.tar", 1001, "1234", 7),
              ("http://host/a.tar", 1000, "1235", 7), ("http://host/a.tar", 1000, "1234", 8)]  # fmt: skip
    assert len({_name(*key) for key in [known, *others]}) == 5


def test_no_read_mixes_old_chunks_with_those_of_a_rewritten_object(store, copy, folder, small_chunks):
    index = ShardIndex.open(store.url)
    read(new_storage(folder), index, LARGEST, CHUNK, 2 * CHUNK)  # chunk 1, old
    content = rewrite(copy, index, LARGEST)
    assert read(new_storage(folder), index, LARGEST, 0, 3 * CHUNK) == content[: 3 * CHUNK]
    before = len(tar_reads(store))
    assert read(new_storage(folder), index, LARGEST, 0, 3 * CHUNK) == content[: 3 * CHUNK]
    assert len(tar_reads(store)) == before


def test_chunks_of_two_versions_are_not_put_together(store, copy, folder, small_chunks):
    index = ShardIndex.open(store.url)
    read(new_storage(folder), index, LARGEST, 0, CHUNK)
    content = rewrite(copy, index, LARGEST)
    read(new_storage(folder), index, LARGEST, CHUNK, 2 * CHUNK)
    storage = new_storage(folder)  # finds both, and has not asked the store yet
    assert read(storage, index, LARGEST, 0, 2 * CHUNK) == content[: 2 * CHUNK]
    assert read(storage, index, LARGEST, 0, CHUNK) == content[:CHUNK]  # and now knows which one is the old one


def test_a_store_without_etags_is_cached_too(store, copy, folder, small_chunks, monkeypatch):
    monkeypatch.setattr(Storage, "_facts", without_version(Storage._facts))
    index = ShardIndex.open(store.url)
    for _ in range(2):
        got = read(new_storage(folder), index, LARGEST, 5, 2 * CHUNK - 5)
        assert got == bytes_of(copy, index, LARGEST, 5, 2 * CHUNK - 5)
    assert len(tar_reads(store)) == 1


def without_version(facts: Callable) -> Callable:
    return lambda self, location: replace(facts(self, location), version=None)


def batches(path: Path | str, rank: int, **changes) -> list[MicroBatch]:
    settings = {"world_size": 2, "end": 2 * STEPS_PER_EPOCH, **changes}
    return list(make_loader(path, rank, micro_batch=4, **settings))


@pytest.fixture(scope="module")
def from_disk(shards) -> list[list[MicroBatch]]:
    return [batches(shards, rank) for rank in range(2)]


def test_two_ranks_with_workers_get_the_batches_from_disk_and_the_second_epoch_sends_no_request(
    store, copy, tmp_path, from_disk
):
    keys = {"cache": str(tmp_path / "cache"), "cache_size": "1GB"}
    prepare_cache(DataConfig(**keys))
    half = len(from_disk[0]) // 2
    loaders = [make_loader(store.url, rank, 2, 2, 4, 0, STEPS_PER_EPOCH, **keys) for rank in range(2)]
    together = list(zip(*loaders, strict=True))  # all four workers read at the same time
    for rank in range(2):
        assert_same([pair[rank] for pair in together], from_disk[rank][:half])
    assert chunks_fetched(store, trainer.data.cache.CHUNK) == dict.fromkeys(
        all_chunks(copy, trainer.data.cache.CHUNK), 1
    )
    loaders = [make_loader(store.url, rank, 2, 1, 4, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, **keys) for rank in range(2)]
    before = len(store.requests)
    for rank, loader in enumerate(loaders):
        assert_same(list(loader), from_disk[rank][half:])
    assert len(store.requests) == before


def test_batches_are_the_same_while_entries_come_and_go_and_after_a_resume(
    store, folder, small_chunks, from_disk, monkeypatch
):
    bound = 15 * CHUNK
    monkeypatch.setattr(trainer.data.cache, "_folder", lambda config: CacheFolder(folder, bound))
    keys = {"cache": str(folder), "cache_size": "1GB"}
    assert_same(batches(store.url, 0, **keys), from_disk[0])
    assert max(chunks_fetched(store).values()) > 1  # some had gone
    assert bytes_on_disk(folder) <= bound
    start = STEPS_PER_EPOCH - 3
    resumed = batches(store.url, 1, start=start, **keys)
    assert_same(resumed, from_disk[1][-len(resumed) :])
    assert isinstance(open_storage(DataConfig(**keys)), CachedStorage)
