"""A copy of the shards that a test may spoil, and the same behind a real HTTP server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer.data.cache
from tests.data.cached_shards import CHUNK
from tests.data.http_store import HttpStore, serve
from trainer.data.cache_folder import CacheFolder


@pytest.fixture
def copy(shards, tmp_path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


@pytest.fixture
def store(copy) -> Iterator[HttpStore]:
    with serve(copy) as store:
        yield store


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a cache, as a run prepares it."""
    CacheFolder(tmp_path / "cache", 10**9).prepare()
    return tmp_path / "cache"


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Of a cache: so small that the tests' shards have many."""
    monkeypatch.setattr(trainer.data.cache, "CHUNK", CHUNK)
