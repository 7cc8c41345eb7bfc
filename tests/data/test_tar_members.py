"""Every format that shards come in is read as tarfile reads it; damage is an error and never a quiet end."""

import io
import random
import tarfile
from itertools import pairwise

import pytest
from webdataset.tariterators import base_plus_ext

from trainer.data.tar_members import BLOCK, TarDamage, TarMember, members_of, members_of_archive, shown

LONG = "a/" + "very_" * 40 + "long_name"
FILES = {
    "short.jpg": b"1" * 700,
    "short.cls": b"3",
    f"{LONG}.jpg": b"2" * BLOCK,
    f"{LONG}.cls": b"4",
    "naïve_名前.jpg": b"3" * 5,
    "empty.jpg": b"",
}


def tar_bytes(files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT, **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1700000000.25  # pax gives every member a header of its own for the fraction
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def entry(name: str, type: bytes, size: int = 0, linkname: str = "") -> bytes:
    """A header block with a proper checksum, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = type, size, linkname
    return info.tobuf(tarfile.GNU_FORMAT)


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def archive(content: bytes) -> list[TarMember]:
    return list(members_of_archive(io.BytesIO(content), len(content)))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_extended_headers_are_read_and_belong_to_the_member_that_follows(format):
    content = tar_bytes(FILES, format, pax_headers={"comment": "of the whole archive"})
    members = archive(content)
    assert {m.name: content[m.start : m.start + m.size] for m in members} == FILES
    assert members[2].start - members[2].header >= 3 * BLOCK
    for member, following in pairwise(members):
        assert member.end == following.header
    # The stretch of one sample stands for itself: its names do not depend on what came before.
    sample = content[members[2].header : members[3].end]
    assert [m.name for m in members_of(sample)] == [f"{LONG}.jpg", f"{LONG}.cls"]


def test_a_size_in_a_pax_header_counts():
    record = b"9 size=5\n"
    content = (
        entry("h", tarfile.XHDTYPE, len(record)) + block(record) + entry("a.jpg", tarfile.REGTYPE) + block(b"hello")
    )
    (member,) = archive(content + bytes(2 * BLOCK))
    assert (member.header, member.start, member.size) == (0, 3 * BLOCK, 5)


def test_what_belongs_to_no_sample_is_passed_over():
    content = tar_bytes(
        {"a.cls": b"1", "._a.jpg": b"mac", "README": b"x", "__meta__": b"", "__m__/x.jpg": b"", "a.jpg": b"2"}
    )
    folder = entry("photos/", tarfile.DIRTYPE)
    assert [m.name for m in archive(folder + content)] == ["a.cls", "a.jpg"]
    last = archive(content)[-1]
    assert [m.name for m in members_of(folder + content[: last.end])] == ["a.cls", "a.jpg"]


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.b.JPG", "x/y.z/a.jpg", "./a.jpg", "../../etc/a.cls", "/abs/a.png", "noext", "a."]
)
def test_keys_are_those_of_webdataset(name):
    member = TarMember(name, 0, BLOCK, 0, BLOCK)
    key, extension = base_plus_ext(name)
    assert member.key == (key or "")
    if key is not None:
        assert member.extension == extension.lower()


WHOLE = tar_bytes({"a.jpg": b"1" * 600, "b.jpg": b"2"})
PAX = entry("h", tarfile.XHDTYPE, 11)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:700], r"truncated: 'a\.jpg' at byte 0 ends at byte 1536, the file at 700"),
        (WHOLE[:1536], "truncated: the mark that ends an archive is missing"),
        (WHOLE[:1600], "truncated: ends inside a header at byte 1536"),
        (WHOLE[:1536] + b"x" + WHOLE[1537:], r"no tar header at byte 1536 \(bad checksum\)"),
        (WHOLE + WHOLE, "more data follow the mark that ends the archive at byte 2560"),
        (entry("a.jpg", tarfile.SYMTYPE, linkname="/etc/passwd") + WHOLE, "'a.jpg' at byte 0 is not a regular file"),
        (entry("a.jpg", tarfile.LNKTYPE, linkname="b.jpg") + WHOLE, "not a regular file"),
        (entry("a.jpg", tarfile.GNUTYPE_SPARSE) + WHOLE, "not a regular file"),
        (entry("a.jpg", tarfile.REGTYPE, 2**60) + WHOLE, "truncated: 'a.jpg' at byte 0 ends at byte 11529"),
        (entry("a.jpg", tarfile.REGTYPE, -512) + WHOLE, "the header at byte 0 claims -512 bytes"),
        (entry("h", tarfile.XHDTYPE, 2**40) + WHOLE, "the extended header at byte 0 claims 1099511627776 bytes"),
        (entry("h", tarfile.GNUTYPE_LONGNAME, 3000) + WHOLE[:900], "ends inside the extended header at byte 0"),
        (PAX + block(b"99 path=a.j") + WHOLE, "the pax header at byte 0 is damaged"),
        (PAX + block(b"11 size=-5\n") + WHOLE, "the pax header at byte 0 claims '-5' bytes"),
        (PAX + block(b"0 0 0 0 0 0") + WHOLE, "the pax header at byte 0 is damaged"),
        (entry("h", tarfile.XHDTYPE, 24) + block(b"24 GNU.sparse.map=0,512\n") + WHOLE, "stored as a sparse file"),
        (b"\xff\xd8\xff\xe0" + bytes(1020), "no tar header at byte 0"),
    ],
)  # fmt: skip
def test_damage_is_an_error_that_names_the_place(content, message):
    with pytest.raises(TarDamage, match=message):
        archive(content)


def test_a_member_that_goes_beyond_its_stretch_is_an_error():
    with pytest.raises(TarDamage, match=r"'a\.jpg' ends 512 bytes past the range in the index"):
        list(members_of(WHOLE[:1024]))


def test_names_in_messages_stay_on_one_short_line():
    for name in ("a\nb\x1b[31m\udce9.jpg", "x" * 10_000):
        assert shown(name).isprintable()
        assert len(shown(name)) < 200
    with pytest.raises(TarDamage) as caught:
        archive(entry("a\nb.jpg", tarfile.SYMTYPE) + WHOLE)
    assert "\n" not in str(caught.value)


def test_no_flipped_byte_makes_the_reader_do_anything_but_read_or_refuse():
    content = tar_bytes(FILES, tarfile.PAX_FORMAT)
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 5))):
            damaged[chance.randrange(len(content))] = chance.randrange(256)
        try:
            members = archive(bytes(damaged))
        except TarDamage:
            refused += 1
        else:
            assert all(0 <= m.header < m.start <= m.end <= len(content) for m in members)
    assert refused > 100
