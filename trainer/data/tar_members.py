"""The members of a stretch of a tar file, with every header's checksum verified.

`tarfile` and readers built on it stop quietly at a damaged header, as if the archive ended there; a loader that did so
would leave one rank short of samples and the others waiting. So headers are read one by one here, and a bad one is an
error."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.errors import BadInput

BLOCK = tarfile.BLOCKSIZE


class TarDamage(BadInput):
    """A stretch of a tar file is not a sequence of whole members."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar. Offsets in bytes from the start of the stretch; `end` includes the padding."""

    name: str
    header: int
    start: int
    size: int
    end: int

    @property
    def key(self) -> str:
        """What WebDataset groups members by: the path up to the first dot of the base name."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def extension(self) -> str:
        """What follows the key's dot, in lower case, e.g. `jpg`."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def parse_member(header: bytes | memoryview, offset: int) -> TarMember:
    """The member whose 512-byte header stands at `offset`. Raises TarDamage if it is not a header of a regular file."""
    try:
        info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise TarDamage(f"no tar header at byte {offset} ({error})") from error
    if not info.isreg():
        raise TarDamage(f"'{info.name}' at byte {offset} is not a regular file (tar type {info.type!r})")
    start = offset + BLOCK
    return TarMember(info.name, offset, start, info.size, start + -(-info.size // BLOCK) * BLOCK)


def members_of(stretch: bytes) -> Iterator[TarMember]:
    """The members of a stretch that starts with a header and ends with the last member's padding.

    Raises TarDamage at the first header that is not one, and if the last member does not end with the stretch."""
    offset = 0
    while offset < len(stretch):
        member = parse_member(memoryview(stretch)[offset : offset + BLOCK], offset)
        if member.end > len(stretch):
            raise TarDamage(f"'{member.name}' ends {member.end - len(stretch)} bytes past the range in the index")
        yield member
        offset = member.end
