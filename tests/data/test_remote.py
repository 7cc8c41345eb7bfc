"""Shards behind a URL give the batches that they give from disk, or one error that names them."""

import errno
import os
import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import trainer.data.storage
from tests.data.http_store import serve
from tests.data.test_faults import VICTIM
from tests.data.test_loader import STEPS_PER_EPOCH, make_loader
from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.errors import ShardError
from trainer.data.evaluation import evaluation_batches
from trainer.data.reader import read_samples
from trainer.data.shard_index import ShardIndex, offsets_file
from trainer.data.storage import Storage
from trainer.data.urls import join_url, redact
from trainer.errors import BadInput

PATIENT = {"retries": 3, "timeout": 20.0}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(trainer.data.storage, "FIRST_DELAY", 0.01)


def epoch(path: Path | str, **changes) -> list[MicroBatch]:
    return list(make_loader(path, end=STEPS_PER_EPOCH, **changes))


def assert_same(batches: list[MicroBatch], expected: list[MicroBatch]) -> None:
    assert [batch.keys for batch in batches] == [batch.keys for batch in expected]
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, expected, strict=True))


@pytest.fixture(scope="module")
def from_disk(shards) -> list[MicroBatch]:
    return epoch(shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_from_disk(store, from_disk, workers):
    assert_same(epoch(store.url, workers=workers, **PATIENT), from_disk)


def test_shards_are_read_by_range_and_the_index_once(store):
    epoch(store.url, **PATIENT)
    assert len(store.reads("train.json")) == len(store.reads("train.offsets.npy")) == 1
    read = [request for request in store.requests if request.method == "GET" and request.name.endswith(".tar")]
    assert all(request.first is not None for request in read)
    size = sum(path.stat().st_size for path in store.folder.glob("*.tar"))
    assert sum(request.end - request.first for request in read) <= size


@pytest.mark.parametrize("kind", ["503", "reset", "cut"])
def test_what_fails_for_the_moment_is_tried_again(store, from_disk, kind):
    store.first_times(kind, 2)
    assert_same(epoch(store.url, **PATIENT), from_disk)


def test_a_server_that_answers_no_more_is_asked_again_after_the_timeout(store, from_disk):
    index = ShardIndex.open(store.url)
    store.first_times("stall", 1, VICTIM)
    samples = np.arange(60, 64)  # of the victim
    got = read_samples(index, samples, Storage(retries=1, timeout=0.5))
    assert [raw.content for raw in got] == [
        raw.content for raw in read_samples(ShardIndex.open(store.folder), samples, Storage())
    ]
    assert len(store.reads(VICTIM)) == 2


@pytest.mark.parametrize(
    ("kind", "cause"), [("503", "503"), ("reset", "disconnected|reset"), ("cut", "bytes|payload"), ("stall", "Timeout")]
)
def test_what_goes_on_failing_is_one_error_with_url_range_and_attempts(store, kind, cause):
    index = ShardIndex.open(store.url)
    store.first_times(kind, 99, VICTIM)
    with pytest.raises(ShardError, match=rf"(?i){VICTIM}, bytes \d+-\d+ cannot be read: .*({cause}).*\(3 attempts\)$"):
        read_samples(index, np.arange(60, 64), Storage(retries=2, timeout=0.3))


def test_a_loader_ends_with_that_error(store):
    loader = make_loader(store.url, workers=2, end=STEPS_PER_EPOCH, retries=1, timeout=5.0)
    store.first_times("503", 99, VICTIM)
    with pytest.raises(ShardError, match=rf"{store.url}/{VICTIM}, bytes \d+-\d+ cannot be read: .*503.*\(2 attempts\)"):
        list(loader)


def test_a_shard_that_goes_missing_is_an_error_at_once(store):
    index = ShardIndex.open(store.url)
    (store.folder / VICTIM).unlink()
    with pytest.raises(ShardError, match=rf"{VICTIM}, bytes \d+-\d+ cannot be read: No such file$"):
        read_samples(index, np.arange(60, 64), Storage(retries=5))
    assert len(store.reads(VICTIM)) == 1


def test_a_server_that_ignores_ranges_is_refused(store):
    index = ShardIndex.open(store.url)
    store.fault = lambda request: "whole"
    with pytest.raises(ShardError, match="does not serve byte ranges"):
        read_samples(index, np.arange(60, 64), Storage())


def test_a_shard_rewritten_to_the_same_size_is_noticed(store):
    index, storage = ShardIndex.open(store.url), Storage()
    read_samples(index, np.arange(60, 64), storage)
    path = store.folder / VICTIM
    content = bytearray(path.read_bytes())
    content[int(index.offsets[96, 1]) - 1] ^= 1  # far from what is read next
    path.write_bytes(content)
    with pytest.raises(ShardError, match=rf"{VICTIM}, bytes \d+-\d+: the shard was rewritten during the run"):
        read_samples(index, np.arange(64, 66), storage)


@pytest.mark.parametrize(("change", "words"), [(-512, "is truncated"), (512, "was rewritten")])
def test_a_shard_of_another_size_is_noticed_during_the_run(store, change, words):
    index = ShardIndex.open(store.url)
    os.truncate(store.folder / VICTIM, index.shards[3].num_bytes + change)
    with pytest.raises(ShardError, match=f"{VICTIM}.*the shard {words}: .* bytes where the index says"):
        read_samples(index, np.arange(60, 64), Storage())


def test_missing_shards_and_sizes_are_found_before_training(store):
    os.truncate(store.folder / VICTIM, 1024)
    with pytest.raises(BadInput, match=rf"shard {store.url}/{VICTIM} has 1024 bytes"):
        ShardIndex.open(store.url)
    (store.folder / VICTIM).unlink()
    with pytest.raises(BadInput, match=rf"{store.url}/{VICTIM} cannot be read: No such file; {store.url}/train.json"):
        ShardIndex.open(store.url)
    with serve(store.folder) as other:  # nothing of the checks above is still under way there
        ShardIndex.open(other.url, check_remote_shards=False)
        assert sorted(request.name for request in other.requests) == ["train.json", "train.offsets.npy"]


def test_no_index_behind_a_url_is_refused(store):
    with pytest.raises(BadInput, match=rf"no shard index: {store.url}/nothing/train.json cannot be read: No such file"):
        ShardIndex.open(f"{store.url}/nothing")


def test_a_copy_of_a_remote_index_goes_with_it(store):
    index = ShardIndex.open(f"{store.url}/train.json")
    folder = index.file.parent
    assert {file.name for file in folder.iterdir()} == {"train.json", "train.offsets.npy"}
    assert index.content_hash == ShardIndex.open(store.folder).content_hash
    del index
    assert not folder.exists()


def test_a_local_index_may_list_shards_behind_urls(store, copy, tmp_path, from_disk):
    (tmp_path / "index").mkdir()
    text = (copy / "train.json").read_text().replace('"url": "', f'"url": "{store.url}/')
    (tmp_path / "index" / "train.json").write_text(text)
    shutil.copy(offsets_file(copy / "train.json"), tmp_path / "index")
    assert_same(epoch(tmp_path / "index", **PATIENT), from_disk)


def test_passwords_and_signatures_are_used_and_not_shown(store, from_disk):
    store.token = "sig=s3cret"
    url = f"http://someone:pa55word@127.0.0.1:{store.port}/?sig=s3cret"
    assert_same(epoch(url, **PATIENT), from_disk)
    assert ShardIndex.open(url).name == f"{store.url}/train.json?…"
    saved = str(DataConfig(path=url).model_dump(mode="json"))
    index = ShardIndex.open(url)
    messages = [saved]
    for kind in ("503", "404", "reset"):
        store.fault = lambda request, kind=kind: kind
        with pytest.raises(ShardError) as caught:
            read_samples(index, np.arange(4), Storage(retries=0))
        messages.append(str(caught.value))
        with pytest.raises(BadInput) as refused:
            ShardIndex.open(url, storage=Storage(retries=0))
        messages.append(str(refused.value))
    for message in messages:
        assert "127.0.0.1" in message
        assert "s3cret" not in message
        assert "pa55word" not in message
        assert "\n" not in message


def test_a_forbidden_url_is_an_error_at_once(store):
    store.token = "sig"
    with pytest.raises(BadInput, match="403"):
        ShardIndex.open(store.url, storage=Storage(retries=9))
    assert len(store.reads("train.json")) == 1


def test_secrets_are_cut_out_of_any_text():
    text = "pipe:curl 'https://me:pw@host.org:8/a b' -o x s3://key:secret@bucket/k?X-Sig=1 and t@x.org, what?"
    assert redact(text) == "pipe:curl 'https://host.org:8/a b' -o x s3://bucket/k?… and t@x.org, what?"
    assert redact("/data/a#b?c@d") == "/data/a#b?c@d"
    assert redact("https://me:p@ss@host/k?sig=a@b") == "https://host/k?…"
    assert redact(f"{Path('https://me:pw@host/k?sig=1')}: no such file") == "https:/host/k?… no such file"


def test_names_are_joined_to_urls():
    assert join_url("s3://b/dir/", "a b#1.tar") == "s3://b/dir/a b#1.tar"
    assert join_url("https://h/dir?sig=1", "a b#1.tar") == "https://h/dir/a%20b%231.tar?sig=1"


@pytest.mark.parametrize("prefix", ["", "file:", "file://"])
def test_odd_characters_in_paths_mean_nothing(shards, tmp_path, from_disk, prefix):
    folder = shutil.copytree(shards, tmp_path / "a#b?c %41{0..1}")
    assert_same(epoch(f"{prefix}{folder}"), from_disk)


def test_odd_characters_in_names_reach_an_http_server(copy, from_disk):
    (copy / VICTIM).rename(copy / "odd #3?.tar")
    (copy / "train.json").write_text((copy / "train.json").read_text().replace(VICTIM, "odd #3?.tar"))
    with serve(copy) as store:
        assert_same(epoch(store.url, **PATIENT), from_disk)


@pytest.mark.parametrize(
    ("url", "module", "extra"), [("s3://bucket/x", "s3fs", "s3"), ("gs://bucket/x", "gcsfs", "gs")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, url, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(BadInput, match=rf"pip install 'localmim-freeze\[{extra}\]'"):
        ShardIndex.open(url)


def test_a_scheme_that_nothing_reads_is_refused():
    with pytest.raises(BadInput, match=r"nosuch://a/b/train.json: Protocol not known"):
        ShardIndex.open("nosuch://a/b")


def test_any_filesystem_of_fsspec_will_do(shards, from_disk):
    memory = fsspec.filesystem("memory")
    memory.put(f"{shards}/", "/shards/", recursive=True)
    assert_same(epoch("memory://shards"), from_disk)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_hiccup_of_a_network_mount_is_tried_again(shards, from_disk, monkeypatch, number):
    failed = set()

    def flaky(path, mode):
        if Path(path).suffix == ".tar" and path not in failed:
            failed.add(path)
            raise OSError(number, os.strerror(number), str(path))
        return open(path, mode)

    monkeypatch.setattr(trainer.data.storage, "open", flaky, raising=False)
    assert_same(epoch(shards), from_disk)
    assert len(failed) == 6


def test_a_dead_mount_is_one_error(shards, monkeypatch):
    loader = make_loader(shards, end=STEPS_PER_EPOCH, retries=2)

    def dead(path, mode):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(trainer.data.storage, "open", dead, raising=False)
    with pytest.raises(ShardError, match=r"\.tar, bytes \d+-\d+ cannot be read: Input/output error \(3 attempts\)"):
        list(loader)


def test_evaluation_over_http_sees_each_sample_once(store):
    local, seen = {}, []
    for rank in range(2):
        settings = {"image_size": 32, "batch": 16, "rank": rank, "world_size": 2}
        remote = list(evaluation_batches(ShardIndex.open(store.url), **settings))
        for batch, expected in zip(remote, evaluation_batches(ShardIndex.open(store.folder), **settings), strict=True):
            assert torch.equal(batch.images, expected.images)
            seen += batch.samples[batch.valid].tolist()
            local[rank] = len(remote)
    assert sorted(seen) == list(range(150))
    assert local[0] == local[1]
