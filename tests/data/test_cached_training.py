"""Whole runs of the command on two ranks from a URL with a cache: the run from disk, and each byte is sent once."""

from pathlib import Path

import pytest

from tests.data.cached_shards import chunks_fetched
from tests.launch.running import Run, assert_same_run
from trainer.data.cache import CHUNK

pytestmark = pytest.mark.slow
TWO_EPOCHS = ("train.epochs=2", "data.workers=1")


def start(directory: Path, data: object, *overrides: str, launcher: str = "torchrun") -> tuple[int, Run]:
    with Run(directory, data) as run:
        run.start(launcher, *TWO_EPOCHS, *overrides)
        return run.end(), run


def test_two_epochs_from_a_url_with_a_cache_are_those_from_disk_and_cost_the_store_one(store, copy, tmp_path):
    cache = tmp_path / "cache"
    keys = (f"data.cache={cache}", "data.cache_size=100MB")
    code, remote = start(tmp_path / "remote", store.url, *keys)
    assert code == 0, remote.printed
    sent = chunks_fetched(store, CHUNK)
    assert set(sent.values()) == {1}
    assert {name for name, _ in sent} == {path.name for path in copy.glob("*.tar")}
    assert f"cache of at most 100 MB in {cache}" in remote.printed
    code, local = start(tmp_path / "local", copy)
    assert code == 0, local.printed
    assert len(local.losses()) == 2 * 18
    assert_same_run(remote, local)
    cache.rename(tmp_path / "elsewhere")
    cache.write_text("in the way")
    code, refused = start(tmp_path / "refused", store.url, *keys, launcher="python")
    assert code == 2
    assert f"error: rank 0: data.cache {cache}: cannot be used (" in refused.printed
    assert "Traceback" not in refused.printed
    assert not (tmp_path / "refused").exists()
