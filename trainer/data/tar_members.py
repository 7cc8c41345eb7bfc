"""The members of a tar file or of a stretch of one, with every header's checksum verified.

`tarfile` and readers built on it stop quietly at a damaged header, as if the archive ended there; a loader that did so
would leave one rank short of samples and the others waiting. So headers are read one by one here, and a bad one is an
error.

Understood are the formats that shards come in: ustar, pax (a member's own header and the archive's) and GNU (long
names). An extended header belongs to the member that follows it. What WebDataset's readers pass over is passed over
here too: folders, files without a key or an extension, and names between double underscores."""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from trainer.errors import BadInput

BLOCK = tarfile.BLOCKSIZE

_PAX_HEADERS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED_HEADERS = (*_PAX_HEADERS, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Real ones hold a path and a few numbers; a damaged size must not become an allocation.
_MAX_EXTENDED_HEADER = 2**20
_SHOWN_NAME = 120
_CHUNK = 2**20
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's tar_file_iterator skips these

Read = Callable[[int, int], bytes]  # (offset, size) → the bytes there, fewer at the end


class TarDamage(BadInput):
    """A stretch of a tar file is not a sequence of whole members."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar. Offsets in bytes: `header` of the first header that speaks of it, `start` of its
    content, and `end`, which includes the padding."""

    name: str
    header: int
    start: int
    size: int
    end: int

    @property
    def key(self) -> str:
        """`key_of` its name."""
        return key_of(self.name)

    @property
    def extension(self) -> str:
        """What follows the key's dot, in lower case, e.g. `jpg`."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def key_of(name: str) -> str:
    """What WebDataset groups members by: the path up to the first dot of the base name. Empty for a file that belongs
    to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return folder + slash + stem if stem and dot and not _META.match(name) else ""


def members_of(stretch: bytes) -> Iterator[TarMember]:
    """The samples' members in a stretch that starts with a header and ends with the last member's padding.

    Raises TarDamage at the first header that is not one, and if the last member does not end with the stretch."""
    offset = 0
    while offset < len(stretch):
        member, offset = _next_member(lambda first, size: stretch[first : first + size], offset)
        if offset > len(stretch):
            name = shown(member.name) if member else "a header"
            raise TarDamage(f"{name} ends {offset - len(stretch)} bytes past the range in the index")
        if member is not None and member.key:
            yield member


def members_of_archive(file: BinaryIO, size: int) -> Iterator[TarMember]:
    """The samples' members of a whole tar file of `size` bytes, up to the zeros that end it.

    Reads headers only. Raises TarDamage at the first header that is not one, if the file ends before the archive does,
    and if anything but zeros follows its end."""

    def read(first: int, count: int) -> bytes:
        file.seek(first)
        return file.read(count)

    offset = 0
    while any(block := read(offset, BLOCK)):
        if len(block) < BLOCK:
            raise TarDamage(f"truncated: ends inside a header at byte {offset}")
        member, end = _next_member(read, offset)
        if end > size:
            name = shown(member.name) if member else "a header"
            raise TarDamage(f"truncated: {name} at byte {offset} ends at byte {end}, the file at {size}")
        if member is not None and member.key:
            yield member
        offset = end
    if not block:
        raise TarDamage("truncated: the mark that ends an archive is missing")
    for first in range(offset, size, _CHUNK):
        if read(first, _CHUNK).strip(b"\0"):
            raise TarDamage(
                f"more data follow the mark that ends the archive at byte {offset}, which other readers never see "
                "(several tars joined? then take them apart)"
            )


def shown(name: str) -> str:
    """A name from a tar, quoted for a message: on one line, printable, and not too long."""
    if len(name) > _SHOWN_NAME:
        name = f"{name[: _SHOWN_NAME // 2]}…{name[-_SHOWN_NAME // 2 :]}"
    return repr(name)


def _next_member(read: Read, offset: int) -> tuple[TarMember | None, int]:
    """The file whose first header stands at `offset`, and the offset of what follows it. None instead of the file for
    an archive's own header and for a folder."""
    first, name, size = offset, None, None
    while True:
        info = _parse_header(read(offset, BLOCK), offset)
        offset += BLOCK
        if info.type == tarfile.XGLTYPE:
            return None, offset + _padded(info.size)
        if info.type not in _EXTENDED_HEADERS:
            break
        if info.size > _MAX_EXTENDED_HEADER:
            raise TarDamage(f"the extended header at byte {offset - BLOCK} claims {info.size} bytes")
        content = read(offset, info.size)
        if len(content) < info.size:
            raise TarDamage(f"truncated: ends inside the extended header at byte {offset - BLOCK}")
        if info.type in _PAX_HEADERS:
            name, size = _parse_pax(content, offset, name, size)
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            name = _text(content.partition(b"\0")[0])
        offset += _padded(info.size)
    name = info.name if name is None else name
    if info.isdir():
        return None, offset
    member = _member(info, first, offset, name, info.size if size is None else size)
    return member, member.end


def _parse_header(header: bytes | memoryview, offset: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TarDamage(f"no tar header at byte {offset} ({error})") from error
    if info.size < 0:
        raise TarDamage(f"the header at byte {offset} claims {info.size} bytes")
    return info


def _member(info: tarfile.TarInfo, header: int, start: int, name: str, size: int) -> TarMember:
    if info.type not in _FILE_TYPES:
        raise TarDamage(
            f"{shown(name)} at byte {header} is not a regular file (tar type {info.type.decode('latin-1')!r})"
        )
    return TarMember(name, header, start, size, start + _padded(size))


def _parse_pax(content: bytes, offset: int, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Name and size that a pax header (POSIX.1-2001, records `LENGTH KEY=VALUE\\n`) gives the member that follows."""
    rest = content
    while rest:
        digits, space, _ = rest.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        record, rest = rest[len(digits) + 1 : length], rest[length:]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not (space and equals and record.endswith(b"\n")):
            raise TarDamage(f"the pax header at byte {offset - BLOCK} is damaged")
        if key.startswith(b"GNU.sparse."):
            raise TarDamage(f"the member at byte {offset - BLOCK} is stored as a sparse file: write the tar without")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) >= 20:
                raise TarDamage(f"the pax header at byte {offset - BLOCK} claims {shown(_text(value))} bytes")
            size = int(value)
    return name, size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
