"""A folder of entries on this machine's disk, shared by processes, in which one fetches what the others wait for.

::

    FOLDER/ranges/NAME          an entry, whole: header, version, content
    FOLDER/ranges/NAME.part     an entry to come, locked (flock) by the one who fetches it
    FOLDER/ranges/ledger        bytes that entries take; locked while room is made and while an entry gets its name

The bound: at any moment the sizes of all entries and parts together are at most `bound` bytes, if all who share the
folder name the same one; otherwise the smaller holds as soon as one who names it starts or writes. A part has the size
of its entry before the first byte is written, and gets it under the ledger's lock. The ledger itself, names and what
the file system adds are not counted.

Whoever is killed leaves at most a part without a lock, which the next one who wants that entry, or needs room, takes
for nothing. The ledger may then count too much, never too little; who finds it at the bound counts anew. Entries are
not synced to disk: after a power cut their length or checksum is wrong, and that is noticed."""

import errno
import fcntl
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PART = ".part"
_NAME = re.compile(r"[0-9a-f]{40}(\.part)?")
_HEADER = struct.Struct("<8sIIQ")  # mark, crc32 of name, version and content, bytes of version, bytes of content
_MARK = b"shard\0v1"
_LEDGER = struct.Struct("<Q?")  # bytes taken, whether somebody has told of trouble
_UNKNOWN = 2**64 - 1
_SPARE = 20  # counting anew takes a moment: then so much is made free at once, a twentieth of the bound
_LONGEST_WAIT = 30.0  # seconds for the ledger: its holder may have been suspended
_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT)


@dataclass(frozen=True)
class Entry:
    """Bytes of a remote file, and which version of the file they are of (its ETag; empty if it has none)."""

    content: memoryview
    version: str


class CacheFolder:
    """Used by any number of threads and processes. Whatever the disk refuses comes out as OSError."""

    def __init__(self, folder: Path, bound: int) -> None:
        self.path = folder
        self._folder = folder / "ranges"
        self._ledger_file = self._folder / "ledger"
        self._bound = bound

    def prepare(self) -> None:
        """Makes the folder, and brings what it holds within the bound. Raises OSError if that cannot be done; a disk
        that is merely full is no error, nor is another process that counts for long."""
        new = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        if new:  # whoever may write to FOLDER may do so here
            with suppress(PermissionError):
                self._folder.chmod(stat.S_IMODE(self.path.stat().st_mode) & ~stat.S_ISVTX)
        try:
            if probe := self.claim("0" * 40):
                probe.release()
            with self._ledger() as ledger:
                _write_ledger(ledger, self._counted_anew(0), told=False)
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise

    def find(self, name: str) -> "Entry | Damaged | None":
        """The entry, which thereby counts as used just now."""
        try:
            with open(self._folder / name, "rb", buffering=0) as file:
                content = memoryview(file.readall())
                with suppress(PermissionError):  # another user's
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        return _parse(name, content)

    def claim(self, name: str) -> "Claim | None":
        """The right to fetch an entry, until it is released or this process ends; None while another has it."""
        path = self._folder / (name + PART)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock_now(descriptor) or not _is_at(descriptor, path):  # another has it, or is done with it
                os.close(descriptor)
                return None
            with suppress(PermissionError):
                os.fchmod(descriptor, self._folder.stat().st_mode & 0o666)
            os.ftruncate(descriptor, 0)  # what one left who was killed
        except BaseException:
            os.close(descriptor)
            raise
        return Claim(self, name, descriptor)

    def first_to_tell(self) -> bool:
        """Whether trouble is news: no process of the machine has asked since the last `prepare`. True, too, where the
        trouble is such that nobody can know."""
        try:
            with self._ledger() as ledger:
                used, told = _read_ledger(ledger)
                _write_ledger(ledger, used, told=True)
            return not told
        except OSError:
            return True

    def _take_room(self, descriptor: int, size: int) -> bool:
        """Gives a part its final size. False if there is no room beside what others are writing."""
        with self._ledger() as ledger:
            used, told = _read_ledger(ledger)
            if used + size > self._bound:
                used = self._counted_anew(size)
            fits = used + size <= self._bound
            _write_ledger(ledger, used + size if fits else used, told)
            if fits:
                os.ftruncate(descriptor, size)
        return fits

    def _publish(self, name: str) -> None:
        with self._ledger():  # whoever counts must see it under one name or the other
            os.rename(self._folder / (name + PART), self._folder / name)

    def _counted_anew(self, room: int) -> int:
        """Bytes taken; where `room` more would pass the bound, after the least recently used entries have gone. Parts
        that nobody fetches any more go in any case. The caller holds the ledger."""
        used = 0
        entries: list[tuple[int, str, int]] = []
        with os.scandir(self._folder) as items:
            for item in items:
                if not _NAME.fullmatch(item.name):
                    continue
                with suppress(FileNotFoundError):  # given up at this moment
                    is_part = item.name.endswith(PART)
                    if is_part and _remove_abandoned(item.path):
                        continue
                    status = item.stat(follow_symlinks=False)
                    used += status.st_size
                    if not is_part:
                        entries.append((status.st_mtime_ns, item.path, status.st_size))
        if used + room <= self._bound:
            return used
        for _, path, size in sorted(entries):
            if used + room <= self._bound - self._bound // _SPARE:
                break
            with suppress(PermissionError):  # another user's: those that may be removed will do
                os.unlink(path)  # who reads it now reads on
                used -= size
        return used

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        descriptor = os.open(self._ledger_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            deadline = time.monotonic() + _LONGEST_WAIT
            while not _lock_now(descriptor):
                if time.monotonic() > deadline:
                    raise OSError(errno.ETIMEDOUT, f"{self._ledger_file} is locked")
                time.sleep(0.001)
            if os.fstat(descriptor).st_size == 0:
                with suppress(PermissionError):
                    os.fchmod(descriptor, self._folder.stat().st_mode & 0o666)
            yield descriptor
        finally:
            os.close(descriptor)


class Damaged:
    """What `CacheFolder.find` gives where a file is not what was written. To fetch the entry again replaces it."""


class Claim:
    """An entry that this thread fetches. Always release it."""

    def __init__(self, folder: CacheFolder, name: str, descriptor: int) -> None:
        self._folder = folder
        self._name = name
        self._file = os.fdopen(descriptor, "r+b")
        self._kept = False

    def keep(self, entry: Entry) -> None:
        """Makes it an entry that others find, if there is room. Once."""
        version = entry.version.encode()
        header = _HEADER.pack(_MARK, _checksum(self._name, version, entry.content), len(version), len(entry.content))
        size = len(header) + len(version) + len(entry.content)
        if self._folder._take_room(self._file.fileno(), size):
            self._write(header, version, entry.content)
            self._folder._publish(self._name)
            self._kept = True

    def _write(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            self._file.write(part)
        self._file.flush()

    def release(self) -> None:
        with suppress(OSError):
            if not self._kept and not self._file.closed:
                (self._folder._folder / (self._name + PART)).unlink()
        with suppress(OSError):  # what could not be written will not be at the second try
            self._file.close()


def _parse(name: str, raw: memoryview) -> Entry | Damaged:
    if len(raw) < _HEADER.size:
        return Damaged()
    mark, checksum, version_bytes, content_bytes = _HEADER.unpack_from(raw)
    if mark != _MARK or len(raw) != _HEADER.size + version_bytes + content_bytes:
        return Damaged()
    version, content = raw[_HEADER.size :][:version_bytes], raw[_HEADER.size + version_bytes :]
    if checksum != _checksum(name, version, content):
        return Damaged()
    return Entry(content, str(version, "utf-8"))


def _checksum(name: str, version: bytes | memoryview, content: bytes | memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(version, zlib.crc32(name.encode())))


def _read_ledger(descriptor: int) -> tuple[int, bool]:
    raw = os.pread(descriptor, _LEDGER.size, 0)
    return _LEDGER.unpack(raw) if len(raw) == _LEDGER.size else (_UNKNOWN, False)


def _write_ledger(descriptor: int, used: int, told: bool) -> None:
    os.pwrite(descriptor, _LEDGER.pack(used, told), 0)


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: str | Path) -> bool:
    """Whether the file that was opened still bears this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_abandoned(part: str) -> bool:
    """Removes a part whose fetcher is gone. One who has just opened it finds that out, and opens another."""
    try:
        descriptor = os.open(part, os.O_RDONLY)
    except PermissionError:
        return False
    try:
        abandoned = _lock_now(descriptor) and _is_at(descriptor, part)
        if abandoned:
            os.unlink(part)
        return abandoned
    finally:
        os.close(descriptor)
