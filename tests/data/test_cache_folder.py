"""The folder of a cache by itself: what is found, what goes, and who may use it."""

import os
import stat
import time

import trainer.data.cache
import trainer.data.cache_folder
from tests.data.cached_shards import ROOM, bytes_on_disk, entries, parts
from trainer.data.cache_folder import PART, CacheFolder, Claim, Entry

A, B, C, D = (digit * 40 for digit in "abcd")


def put(folder: CacheFolder, name: str, size: int) -> None:
    claim = folder.claim(name)
    assert claim is not None
    claim.keep(Entry(memoryview(name[0].encode() * size), "v"))
    claim.release()


def is_there(folder: CacheFolder, name: str) -> bool:
    return isinstance(folder.find(name), Entry)


def test_what_was_used_longest_ago_goes_first(folder):
    cache = CacheFolder(folder, 3500)
    for age, name in ((300, A), (200, B), (100, C)):
        put(cache, name, 1000)
        os.utime(folder / "ranges" / name, (time.time() - age,) * 2)
    assert is_there(cache, A)  # which makes it the newest
    put(cache, D, 1000)
    assert [is_there(cache, name) for name in (A, B, C, D)] == [True, False, True, True]


def test_an_entry_that_does_not_fit_beside_what_others_write_is_not_kept(folder):
    cache = CacheFolder(folder, 3500)
    other = cache.claim(A)
    assert other is not None
    assert cache._take_room(other._file.fileno(), 3000)  # is being written
    put(cache, B, 1000)
    assert not is_there(cache, B)
    assert bytes_on_disk(folder) == 3000
    other.release()
    put(cache, B, 1000)
    assert is_there(cache, B)


def test_an_entry_larger_than_the_bound_is_not_kept(folder):
    cache = CacheFolder(folder, 500)
    put(cache, A, 1000)
    assert not is_there(cache, A)
    assert not parts(folder)


def test_a_start_counts_anew_obeys_a_smaller_bound_and_clears_up_after_the_killed(folder):
    for name in (A, B, C):
        put(CacheFolder(folder, ROOM), name, 1000)
    (folder / "ranges" / (D + PART)).write_bytes(bytes(5000))  # nobody holds it
    living = CacheFolder(folder, ROOM).claim("e" * 40)
    (folder / "ranges" / "ledger").write_bytes(b"")
    (folder / "ranges" / "README").write_text("not ours")
    CacheFolder(folder, 2500).prepare()
    assert len(entries(folder)) == 2
    assert [path.name[0] for path in parts(folder)] == ["e"]
    assert (folder / "ranges" / "README").exists()
    assert living is not None
    living.keep(Entry(memoryview(b"x" * 100), ""))
    assert is_there(CacheFolder(folder, ROOM), "e" * 40)
    living.release()


def test_one_who_was_too_late_for_a_claim_does_not_take_a_file_that_is_gone(folder, monkeypatch):
    """Between opening a part and locking it, its fetcher finishes: the lock is then one on the finished entry."""
    cache = CacheFolder(folder, ROOM)
    first = cache.claim(A)
    assert first is not None
    lock = trainer.data.cache_folder._lock_now

    def finish_first(descriptor: int) -> bool:
        monkeypatch.setattr(trainer.data.cache_folder, "_lock_now", lock)
        first.keep(Entry(memoryview(b"content"), "v"))
        first.release()
        return lock(descriptor)

    monkeypatch.setattr(trainer.data.cache_folder, "_lock_now", finish_first)
    assert cache.claim(A) is None
    entry = cache.find(A)
    assert isinstance(entry, Entry)
    assert bytes(entry.content) == b"content"


def test_nothing_is_found_under_its_name_before_it_is_whole(folder, monkeypatch):
    cache, found = CacheFolder(folder, ROOM), []
    write = Claim._write

    def look_while_writing(claim: Claim, *parts: bytes | memoryview) -> None:
        write(claim, parts[0])
        found.append(cache.find(A))
        write(claim, *parts[1:])
        found.append(cache.find(A))

    monkeypatch.setattr(Claim, "_write", look_while_writing)
    put(cache, A, 1000)
    assert found == [None, None]
    assert is_there(cache, A)


def test_whoever_may_write_to_the_folder_may_use_what_others_made_in_it(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    cache = CacheFolder(tmp_path / "shared", ROOM)
    cache.prepare()
    put(cache, A, 10)
    mode = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shared").rglob("*")}
    assert mode == {"ranges": 0o777, "ledger": 0o666, A: 0o666}
