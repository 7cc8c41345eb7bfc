"""Where the members of an uncompressed tar lie, and those of the tars inside it, without unpacking anything.

A tar stores its members whole and one after the other, so a file in a tar in a tar is a byte range of the outer file.
Only headers are read: a gigabyte takes milliseconds."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.data.tar_members import shown
from trainer.errors import BadInput

_BLOCK = tarfile.BLOCKSIZE
# Tars end with two blocks of zeros and are filled up to a multiple of the writer's buffer, seldom more than this.
_LONGEST_FILLING = 2**20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: the bytes `start` to `start + size` of it."""

    name: str
    start: int
    size: int


@dataclass(frozen=True)
class Archive:
    """An open tar file; `descriptor` is read with pread only, so that threads can share it."""

    path: Path
    descriptor: int
    size: int
    modified_ns: int

    def members(self) -> Iterator[Member]:
        """The regular files in it, in order. Raises BadInput where it is damaged or incomplete."""
        return self._members(0, self.size, str(self.path))

    def members_of(self, inner: Member) -> Iterator[Member]:
        """The regular files in a tar that is a member; their `start` counts from the start of the outer file."""
        return self._members(inner.start, inner.start + inner.size, f"{inner.name} in {self.path}")

    def _members(self, start: int, end: int, what: str) -> Iterator[Member]:
        offset = start
        while any(header := os.pread(self.descriptor, min(_BLOCK, end - offset), offset)):
            info = _parse_header(header, offset, what)
            content = offset + _BLOCK
            offset = content + -(-info.size // _BLOCK) * _BLOCK
            if offset > end:
                raise BadInput(
                    f"{what} is incomplete: at least {offset - end} bytes are missing, since "
                    f"{shown(info.name)} ends after byte {end - start}; download it again"
                )
            if info.isreg():
                yield Member(info.name, content, info.size)
            elif not info.isdir():
                raise BadInput(
                    f"{what} holds {shown(info.name)}, which is no regular file (tar type {info.type!r}), unlike "
                    "the official archive: unpack it and convert the folder with `python -m data_tools imagefolder`"
                )
        if len(header) < _BLOCK:
            raise BadInput(
                f"{what} is incomplete: it lacks the mark at its end, at least {2 * _BLOCK} bytes; download it again"
            )
        if end - offset > _LONGEST_FILLING:
            raise BadInput(
                f"{what} is incomplete: nothing but zeros follows byte {offset - start}, where {end - offset} bytes "
                "are still to come, as in an unfinished download; download it again"
            )


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a tar file for reading. Raises BadInput if there is none, or if it is compressed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    try:
        if os.pread(descriptor, len(_GZIP_MAGIC), 0) == _GZIP_MAGIC:
            raise BadInput(
                f"{path} is compressed with gzip, which no official archive of images is: it may be the devkit "
                "(give it as --devkit) or bounding boxes"
            )
        status = os.fstat(descriptor)
        if status.st_size == 0:
            raise BadInput(f"{path} is empty: download it again")
        yield Archive(path, descriptor, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _parse_header(header: bytes, offset: int, what: str) -> tarfile.TarInfo:
    if len(header) < _BLOCK and offset > 0:
        raise BadInput(
            f"{what} is incomplete: it ends within a header, at least {_BLOCK - len(header)} bytes are missing; "
            "download it again"
        )
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if info.size < 0:
            raise tarfile.HeaderError("negative size")
    except tarfile.HeaderError as error:
        if offset == 0:
            raise BadInput(f"{what} is not a tar file ({error})") from error
        raise BadInput(f"{what} is damaged: no tar header at byte {offset} ({error}); download it again") from error
    return info
