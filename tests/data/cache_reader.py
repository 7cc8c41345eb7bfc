"""A process that reads all of some shards through a cache, in several threads, and compares every byte.

`python -m tests.data.cache_reader SETTINGS`, with the fields of `Settings` as JSON. It says "ready", begins when a line
comes in, and ends with 0 if all bytes were right. `python` of a test starts it with `Reader`."""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import trainer.data.cache
from trainer.data.cache import CachedStorage
from trainer.data.cache_folder import CacheFolder, Claim
from trainer.data.config import DataConfig
from trainer.data.shard_index import ShardIndex

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Settings:
    """`shards`: what the bytes are compared with. `file_limit`: the system refuses to write larger files.
    `hang`: stop for ever in the middle of the first write, and say "writing"."""

    url: str
    shards: str
    folder: str
    bound: int
    chunk: int
    threads: int = 4
    file_limit: int | None = None
    hang: bool = False


class Reader:
    """The process, seen from a test."""

    def __init__(self, settings: Settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.cache_reader", json.dumps(asdict(settings))], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip

    def wait_for(self, word: str) -> None:
        assert _pipe(self._process.stdout).readline().strip() == word, self.finish()

    def begin(self) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write("go\n")
        pipe.flush()

    def kill(self) -> None:
        self._process.kill()
        self.finish()

    def runs(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self._process.communicate(timeout=120)
        return self._process.returncode, errors


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    trainer.data.cache.CHUNK = settings.chunk
    if settings.hang:
        Claim._write = _write_half_and_hang  # type: ignore[method-assign]
    storage = CachedStorage(DataConfig(retries=0), CacheFolder(Path(settings.folder), settings.bound))
    index = ShardIndex.open(settings.url)
    say("ready")
    sys.stdin.readline()
    if settings.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (settings.file_limit, settings.file_limit))
    wrong: list[str] = []
    threads = [
        threading.Thread(target=read_all, args=(index, Path(settings.shards), storage, number, wrong), daemon=True)
        for number in range(settings.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        sys.exit("\n".join(wrong))


def read_all(index: ShardIndex, shards: Path, storage: CachedStorage, seed: int, wrong: list[str]) -> None:
    """Every byte of every shard once, in ranges of another length and order for each seed."""
    chance = random.Random(f"{os.getpid()} {seed}")
    ranges = []
    for number, shard in enumerate(index.shards):
        cuts = sorted({0, shard.num_bytes, *(chance.randrange(1, shard.num_bytes) for _ in range(12))})
        ranges += [(number, first, end) for first, end in itertools.pairwise(cuts)]
    chance.shuffle(ranges)
    for number, first, end in ranges:
        shard = index.shards[number]
        try:
            got = storage.read_range(index.shard_location(number), first, end, shard.num_bytes, shard.sha256)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
            return
        if got != (shards / shard.path).read_bytes()[first:end]:
            wrong.append(f"{shard.path}, bytes {first}-{end}: other bytes")


def say(word: str) -> None:
    print(word, flush=True)


def _write_half_and_hang(claim: Claim, *parts: bytes | memoryview) -> None:
    content = b"".join(parts)
    os.pwrite(claim._file.fileno(), content[: len(content) // 2], 0)
    say("writing")
    time.sleep(1000)


if __name__ == "__main__":
    main()
