"""Remote shards kept on the machine's own disk: what one process has fetched, none of the machine fetches again.

What is kept are chunks of `CHUNK` bytes that begin at multiples of it, not the blocks that lanes read. Each epoch puts
the shards into another order, and lanes and blocks are cut from that (`trainer.data.order`), so hardly a block has the
byte range of one of an earlier epoch; but every byte is in the same chunk for ever. Where a read ends within a chunk,
the rest of it comes along; in most cases it belongs to the next block of the same lane.

A chunk is known by a hash of what the index says of its shard (place without secrets, size, sha256) and its number, so
that a shard written anew with its index shares nothing with the old one. It bears the ETag of the object that it was
cut from: no read mixes two, and once the object store shows another, older chunks count for nothing.

Nobody waits while holding a claim to a chunk, so there is no deadlock, whatever two processes want in whichever order.
"""

import hashlib
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.data.cache_folder import CacheFolder, Claim, Damaged, Entry
from trainer.data.config import DataConfig
from trainer.data.errors import ShardError
from trainer.data.storage import Storage
from trainer.data.urls import redact, scheme_of
from trainer.errors import BadInput

log = logging.getLogger(__name__)

CHUNK = 1 << 20
_LOOK_EVERY = 0.02  # seconds, while another fetches
_PATIENCE = 60.0  # seconds for others to fetch a chunk: they may be suspended, or their store slower than ours
_REST = 300.0  # seconds without a cache after a disk that is full, or another trouble


def open_storage(config: DataConfig) -> Storage:
    """How the recipe wants shards to be read. In the process that reads, see `Storage`."""
    folder = _folder(config)
    return Storage(config.retries, config.timeout) if folder is None else CachedStorage(config, folder)


def prepare_cache(config: DataConfig) -> None:
    """Makes this machine's folder, if the recipe wants one. Raises BadInput where that, or writing there, fails."""
    folder = _folder(config)
    if folder is not None:
        try:
            folder.prepare()
        except OSError as error:
            raise BadInput(
                f"data.cache {folder.path}: cannot be used ({error.strerror}): name a folder on this machine's disk "
                "that may be written to, or leave data.cache and data.cache_size out"
            ) from None


def _folder(config: DataConfig) -> CacheFolder | None:
    if config.cache is None or config.cache_size is None:  # DataConfig allows no half of the pair
        return None
    return CacheFolder(Path(config.cache), config.cache_size)


class CachedStorage(Storage):
    """`Storage` that keeps what it reads of remote shards.

    Trouble with the folder (full, gone, unreadable) ends no read: the bytes then come from the object store, and the
    first process of the machine to see it warns."""

    def __init__(self, config: DataConfig, folder: CacheFolder) -> None:
        super().__init__(config.retries, config.timeout)
        self._folder = folder
        self._resting_until = 0.0
        self._warned: set[str] = set()

    def read_range(self, location: str, start: int, end: int, size: int, digest: str = "") -> bytes:
        """As `Storage.read_range`, which reads what is on this machine, and shards that no digest tells apart."""
        if scheme_of(location) is None or not digest or start >= end:
            return super().read_range(location, start, end, size, digest)
        chunks = range(start // CHUNK, -(-end // CHUNK))
        names = {number: _name(location, size, digest, number) for number in chunks}
        found: dict[int, Entry] = {}
        give_up = time.monotonic() + _PATIENCE
        while time.monotonic() < give_up:
            try:
                self._find_or_fetch(location, size, names, found)
            except OSError as error:
                self._rest(error)
            if not self._drop_other_versions(location, found):
                break
            if len(found) == len(names):
                return b"".join(found[n].content[max(0, start - n * CHUNK) : end - n * CHUNK] for n in chunks)
            if self._rests():
                break
            if self._closed.wait(_LOOK_EVERY):
                raise ShardError(f"shard {redact(location)}, bytes {start}-{end} was not read: the loader closed")
        return super().read_range(location, start, end, size, digest)

    def _find_or_fetch(self, location: str, size: int, names: dict[int, str], found: dict[int, Entry]) -> None:
        """Adds to `found` what is in the folder, and what is not and nobody else fetches. Raises OSError if the folder
        makes trouble, ShardError if the store does."""
        claims: dict[int, Claim] = {}
        try:
            for number in names.keys() - found.keys():
                entry = self._find(location, names[number])
                if entry is None and not self._rests() and (claim := self._folder.claim(names[number])):
                    claims[number] = claim
                    entry = self._find(location, names[number])  # another may have finished just before
                if entry is not None:
                    found[number] = entry
            for first, end in _runs(sorted(claims.keys() - found.keys())):
                content = memoryview(super().read_range(location, first * CHUNK, min(end * CHUNK, size), size))
                version = self.version(location) or ""
                for number in range(first, end):
                    found[number] = Entry(content[(number - first) * CHUNK :][:CHUNK], version)
                    self._keep(claims[number], found[number])
        finally:
            for claim in claims.values():
                claim.release()

    def _find(self, location: str, name: str) -> Entry | None:
        entry = self._folder.find(name)
        if isinstance(entry, Damaged):
            self._warn("damaged", "something in it is damaged, and fetched anew: look at the disk if that comes again")
            return None
        return entry if entry and self.version(location) in (None, entry.version) else None

    def _keep(self, claim: Claim, entry: Entry) -> None:
        if not self._rests():
            try:
                claim.keep(entry)
            except OSError as error:
                self._rest(error)
            finally:
                claim.release()  # those who wait need not wait for the other chunks

    def _drop_other_versions(self, location: str, found: dict[int, Entry]) -> bool:
        """False where chunks are of different versions and only the store knows which one is the object's now."""
        now = self.version(location)
        if now is None:
            return len({entry.version for entry in found.values()}) <= 1
        for number in [number for number, entry in found.items() if entry.version != now]:
            del found[number]
        return True

    def _rests(self) -> bool:
        return time.monotonic() < self._resting_until

    def _rest(self, error: OSError) -> None:
        self._resting_until = time.monotonic() + _REST
        if self._folder.first_to_tell():
            self._warn("trouble", f"{error.strerror}; shards are read without it for the time being")

    def _warn(self, kind: str, what: str) -> None:
        """Once in a process."""
        with self._lock:
            news = kind not in self._warned
            self._warned.add(kind)
        if news:
            log.warning("data.cache %s: %s", self._folder.path, what)


def _name(location: str, size: int, digest: str, number: int) -> str:
    """40 hexadecimal digits: of the chunk's shard as the index knows it, of `CHUNK`, and of its number."""
    known = "\n".join([redact(location), str(size), digest, str(CHUNK), str(number)])
    return hashlib.sha256(known.encode()).hexdigest()[:40]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and end of each stretch of neighbours in rising numbers: [2, 3, 4, 7] → (2, 5), (7, 8)."""
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in group]
        yield stretch[0], stretch[-1] + 1
