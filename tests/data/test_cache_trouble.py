"""A cache that cannot be used is refused before the run, or told of once and done without; and it keeps no secret."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

import trainer.data.cache_folder
from tests.data.cached_shards import (
    CHUNK,
    LARGEST,
    VICTIM,
    be_full,
    be_read_only,
    bytes_of,
    chunks_fetched,
    entries,
    hold,
    new_storage,
    parts,
    read,
    tar_reads,
)
from trainer.data.cache import prepare_cache
from trainer.data.config import DataConfig
from trainer.data.errors import ShardError
from trainer.data.shard_index import ShardIndex
from trainer.data.source import open_source
from trainer.errors import BadInput
from trainer.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("small_chunks")


def be_gone(folder: Path, monkeypatch) -> None:
    shutil.rmtree(folder)


def be_a_file(folder: Path, monkeypatch) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(be_full, "No space left on device"), (be_gone, "No such file or directory"), (be_a_file, "Not a directory"),
     (be_read_only, "Read-only file system")],
)  # fmt: skip
def test_trouble_is_told_of_once_and_ends_nothing(store, copy, folder, caplog, monkeypatch, trouble, words):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    read(storage, index, LARGEST, 0, CHUNK)
    trouble(folder, monkeypatch)
    for number in range(1, 4):
        first, end = number * CHUNK, (number + 1) * CHUNK
        assert read(storage, index, LARGEST, first, end) == bytes_of(copy, index, LARGEST, first, end)
    assert chunks_fetched(store) == {("train-00005.tar", number): 1 for number in range(4)}
    assert [record.message for record in caplog.records] == [
        f"data.cache {folder}: {words}; shards are read without it for the time being"
    ]
    assert not folder.is_dir() or not parts(folder)


def test_what_is_there_is_used_while_the_disk_is_full_and_it_is_filled_again_later(store, folder, monkeypatch):
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    read(storage, index, LARGEST, 0, CHUNK)
    with monkeypatch.context() as full:
        be_full(folder, full)
        read(storage, index, LARGEST, CHUNK, 3 * CHUNK)
    read(storage, index, LARGEST, 0, CHUNK)
    assert chunks_fetched(store) == {("train-00005.tar", number): 1 for number in range(3)}
    storage._resting_until = 0.0
    for _ in range(2):
        read(storage, index, LARGEST, CHUNK, 2 * CHUNK)
    assert chunks_fetched(store)["train-00005.tar", 1] == 2


def test_a_ledger_that_a_suspended_process_holds_stops_nobody(store, copy, folder, monkeypatch, caplog):
    monkeypatch.setattr(trainer.data.cache_folder, "_LONGEST_WAIT", 0.05)
    index, storage = ShardIndex.open(store.url), new_storage(folder)
    with open(folder / "ranges" / "ledger", "rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        assert read(storage, index, VICTIM, 3, 99) == bytes_of(copy, index, VICTIM, 3, 99)
        prepare_cache(DataConfig(cache=str(folder), cache_size="1GB"))  # no reason to refuse a run
    assert "ledger is locked; shards are read without it" in caplog.text


@pytest.mark.parametrize("spoil", ["file in the way", "path below a file", "read-only"])
def test_a_folder_that_cannot_be_used_is_refused_at_the_start(tmp_path, spoil, monkeypatch):
    folder = tmp_path / "cache"
    if spoil == "file in the way":
        folder.write_text("")
    elif spoil == "path below a file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "cache"
    else:
        folder.mkdir()
        be_read_only(folder, monkeypatch)
    with pytest.raises(BadInput, match=rf"data.cache {folder}: cannot be used \(.+\): name a folder") as refusal:
        prepare_cache(DataConfig(cache=str(folder), cache_size="1GB"))
    assert "\n" not in str(refusal.value)


def test_a_disk_that_is_full_at_the_start_is_no_reason_to_refuse(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    prepare_cache(DataConfig(cache=str(tmp_path / "cache"), cache_size="1GB"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"cache": "/c"}, "cache is given without cache_size: set data.cache_size too"),
        ({"cache_size": "1GB"}, "cache_size is given without cache: set data.cache too"),
        ({"cache": "/c", "cache_size": "1MB"}, "data.cache_size: .*greater than or equal to 67108864"),
        ({"cache": "/c", "cache_size": "much"}, "data.cache_size: write an amount"),
        ({"cache": "s3://k:s3cret@b/c", "cache_size": "1GB"}, r"cache is s3://b/c, a URL: name a folder"),
        (
            {"cache": "/c", "cache_size": "1GB", "path": "pipe:cat x", "samples": 5},
            "cache: nothing of a pipe: can be kept; leave",
        ),
    ],
)
def test_a_cache_that_makes_no_sense_is_refused_in_one_line(keys, words):
    with pytest.raises(BadInput, match=words) as refusal:
        parse_recipe({"data": keys}, "recipe")
    assert "\n" not in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


def test_a_cache_for_shards_that_are_files_already_is_refused(shards, copy, store, tmp_path):
    keys = {"cache": str(tmp_path / "cache"), "cache_size": "1GB"}
    with pytest.raises(BadInput, match=rf"data.cache keeps shards .*{shards}.* files already: leave data.cache"):
        open_source(DataConfig(path=str(shards), **keys), rank=0)
    (copy / "train.json").write_text((copy / "train.json").read_text().replace('"url": "', f'"url": "{store.url}/'))
    open_source(DataConfig(path=str(copy), **keys), rank=0)  # an index on disk may list shards that are not


def test_files_are_read_as_ever(shards, folder):
    index, storage = ShardIndex.open(shards), new_storage(folder)
    assert read(storage, index, VICTIM, 5, 50) == bytes_of(shards, index, VICTIM, 5, 50)
    assert not entries(folder)


def test_secrets_are_in_no_name_no_entry_and_no_message_and_a_new_signature_finds_the_old_chunks(
    store, copy, folder, caplog, monkeypatch
):
    store.token = "sig=s3cret"
    for secret in ("s3cret", "s3cret2"):
        index = ShardIndex.open(f"http://me:pa55word@127.0.0.1:{store.port}/?sig={secret}")
        assert read(new_storage(folder), index, VICTIM, 0, CHUNK) == bytes_of(copy, index, VICTIM, 0, CHUNK)
    assert len(tar_reads(store)) == 1
    assert b"s3cret" not in b"".join(path.name.encode() + path.read_bytes() for path in entries(folder))
    be_full(folder, monkeypatch)
    storage = new_storage(folder)
    read(storage, index, VICTIM, CHUNK, 2 * CHUNK)
    claim = hold(folder, index, VICTIM, 3)
    other = new_storage(folder)
    other.close()
    with pytest.raises(ShardError) as error:
        read(other, index, VICTIM, 3 * CHUNK, 3 * CHUNK + 1)
    claim.release()
    for text in (caplog.text, str(error.value)):
        assert text
        assert "s3cret" not in text
        assert "pa55word" not in text
