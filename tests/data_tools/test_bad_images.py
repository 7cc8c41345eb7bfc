"""Bad files are found before a shard is written; they stop the conversion, or are left out and named, on demand."""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.conversion import _look
from data_tools.image_check import CheckOptions, Findings
from data_tools.process_pool import process_pool
from data_tools.report import Report
from data_tools.samples import SourceImage, SourceSplit
from tests.data_tools.shard_contents import by_filename
from tests.photographs import jpeg_bytes, photographs
from trainer.data.decode import decode_rgb
from trainer.data.shard_index import ShardIndex

COFFEE = photographs()["coffee"].crop((0, 0, 300, 200))
WHOLE = jpeg_bytes(COFFEE)


def convert(source: Path, output: Path, *more: str) -> int:
    return main(["imagefolder", "--input", str(source), "--output", str(output), "--workers", "1", *more])


def folder_with(root: Path, **files: bytes) -> Path:
    (root / "images" / "things").mkdir(parents=True)
    for name, content in files.items():
        (root / "images" / "things" / f"{name}.jpg").write_bytes(content)
    return root / "images"


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header, with a correct checksum, claims this size."""
    png = saved(COFFEE, "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def jpeg_claiming(width: int, height: int) -> bytes:
    start_of_frame = WHOLE.index(b"\xff\xc0") + 5
    return WHOLE[:start_of_frame] + struct.pack(">HH", height, width) + WHOLE[start_of_frame + 4 :]


# Seen in the header or at the end of the file, without --decode; and the reason that is given.
BAD_AT_SIGHT = {
    "empty": (b"", "is empty"),
    "text": (b"not an image", "not an image, or cut off within its header"),
    "header_cut": (WHOLE[:300], "unusable header: Truncated File Read"),
    "no_end_mark": (WHOLE[:-2], "image file is truncated"),
    "end_cut": (WHOLE[: len(WHOLE) // 2], "image file is truncated"),
    "zeros_at_the_end": (WHOLE[: len(WHOLE) // 2] + bytes(len(WHOLE) // 2), "not decodable"),
    "png_cut": (saved(COFFEE, "PNG")[:5000], "image file is truncated"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + bytes(20000), "not an image"),
    "jpeg_bomb": (jpeg_claiming(65000, 65000), "decompression bomb"),
    "png_bomb": (png_claiming(50000, 50000), "decompression bomb"),
    "too_long": (png_claiming(70000, 2), "70000 x 2 pixels: sides of 1 to 65500"),
    "no_height": (png_claiming(30, 0), "not an image"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """The report on a folder of all of them and a good image, without --decode."""
    root = tmp_path_factory.mktemp("bad")
    source = folder_with(root, good=WHOLE, **{name: content for name, (content, _) in BAD_AT_SIGHT.items()})
    assert convert(source, root / "set") == 2
    assert not list((root / "set").glob("*.tar"))
    return json.loads((root / "set" / "train.report.json").read_text())


@pytest.mark.parametrize("kind", BAD_AT_SIGHT)
def test_a_bad_file_is_found_without_decoding_the_good_ones(kind, report):
    assert BAD_AT_SIGHT[kind][1] in report["bad"][f"things/{kind}.jpg"]


def test_good_files_are_not_reported(report):
    assert len(report["bad"]) == len(BAD_AT_SIGHT)
    assert report["images"] == len(BAD_AT_SIGHT) + 1


def test_bad_files_stop_the_run_unless_they_are_to_be_skipped(tmp_path, capsys):
    source = folder_with(tmp_path, good=WHOLE, empty=b"", text=b"hello")
    (source / "things" / ".hidden").write_bytes(b"")
    assert convert(source, tmp_path / "set") == 2
    message = capsys.readouterr().err
    assert "not usable as images: 2 of 3 files; mend or remove them, or pass --skip-bad" in message
    assert f"(all are listed in {tmp_path / 'set' / 'train.report.json'})" in message
    assert "'things/empty.jpg': is empty" in message
    assert convert(source, tmp_path / "set", "--skip-bad") == 0
    assert "1 images of 1 classes in 1 shards; 2 bad files left out" in capsys.readouterr().out
    index = ShardIndex.open(tmp_path / "set")
    assert index.num_samples == 1
    assert sorted(index.left_out) == ["things/empty.jpg", "things/text.jpg"]
    assert index.left_out == json.loads((tmp_path / "set" / "train.report.json").read_text())["bad"]


def test_a_file_that_cannot_be_read_is_never_left_out_and_looked_at_anew(tmp_path, capsys):
    source = folder_with(tmp_path, good=WHOLE, empty=b"")
    (source / "things" / "gone.jpg").symlink_to(tmp_path / "away.jpg")
    for _ in range(2):
        assert convert(source, tmp_path / "set", "--skip-bad") == 2
        message = capsys.readouterr().err
        assert "cannot be read: 1 of 3 files, whatever is in them; run the command again" in message
        assert "  'things/gone.jpg': No such file or directory" in message
        assert not list((tmp_path / "set").glob("*.tar"))
    (tmp_path / "away.jpg").write_bytes(WHOLE)
    assert convert(source, tmp_path / "set", "--skip-bad") == 0
    assert list(ShardIndex.open(tmp_path / "set").left_out) == ["things/empty.jpg"]
    assert ShardIndex.open(tmp_path / "set").num_samples == 2


def test_a_passing_read_error_is_forgotten_and_what_else_was_found_is_not(tmp_path):
    good, lost = (SourceImage(tmp_path / name, 0, len(WHOLE), 0, name, 0, "") for name in ("good", "lost"))
    split = SourceSplit("train", [good, lost], ["things"], None)
    (tmp_path / "lost").write_bytes(WHOLE)  # the listed facts are the same whether or not it can be read
    known = Findings({}, {"good": "as remembered"}, 0, {"lost": "Input/output error"})
    check = CheckOptions(decode=False, short_side=None)
    report = Report.of(tmp_path, split, check, (None, 0))
    report.store(known)
    assert report.recall() == known
    with process_pool(1, "data_tools.conversion") as pool:
        assert _look(pool, split, report.recall(), check) == Findings({}, {"good": "as remembered"}, 0, {})


def test_damage_in_the_middle_of_a_jpeg_is_found_with_decode(tmp_path):
    # A valid JPEG but for a second start-of-frame inside the picture, which no decoder takes.
    middle = len(WHOLE) // 2
    damaged = WHOLE[:middle] + b"\xff\xc3\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00" + WHOLE[middle:]
    source = folder_with(tmp_path, good=WHOLE, damaged=damaged)
    assert convert(source, tmp_path / "unseen") == 0
    assert convert(source, tmp_path / "set", "--decode", "--skip-bad") == 0
    assert list(ShardIndex.open(tmp_path / "set").left_out) == ["things/damaged.jpg"]


def test_nothing_but_bad_files_is_an_error_even_if_they_are_skipped(tmp_path, capsys):
    assert convert(folder_with(tmp_path, text=b"hello"), tmp_path / "set", "--skip-bad") == 2
    assert "none of the train images can be used" in capsys.readouterr().err


def test_a_file_of_which_only_transcoding_shows_the_damage_is_a_bad_file(tmp_path):
    cmyk = jpeg_bytes(COFFEE.convert("CMYK"))
    png = saved(COFFEE.convert("RGBA"), "PNG")
    torn = png[:9000] + bytes(3000) + png[12000:]  # header and end are whole
    source = folder_with(tmp_path, good=WHOLE, cmyk=cmyk[:-4000] + b"\xff\xd9", torn=torn)
    assert convert(source, tmp_path / "set", "--skip-bad") == 0
    index = ShardIndex.open(tmp_path / "set")
    assert "things/torn.jpg" in index.left_out
    for sample in by_filename(tmp_path / "set").values():
        decode_rgb(sample["jpg"])


def test_jpegs_with_more_than_one_image_or_a_large_header_are_kept_as_they_are(tmp_path):
    images = {
        "mpo": saved(COFFEE, "MPO", save_all=True, append_images=[COFFEE]),
        "large_header": jpeg_bytes(COFFEE, icc_profile=bytes(100_000)),
        "trailing_bytes": WHOLE + bytes(700),
    }
    source = folder_with(tmp_path, **images)
    assert convert(source, tmp_path / "set") == 0
    stored = by_filename(tmp_path / "set")
    assert {name: stored[f"things/{name}.jpg"]["jpg"] for name in images} == images
    assert json.loads(stored["things/mpo.jpg"]["json"])["width"] == 300


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_transcoded(format, tmp_path):
    assert convert(folder_with(tmp_path, image=saved(COFFEE, format)), tmp_path / "set") == 0
    (sample,) = by_filename(tmp_path / "set").values()
    assert json.loads(sample["json"])["transcoded_from"].startswith(f"{format} ")
    report = json.loads((tmp_path / "set" / "train.report.json").read_text())
    assert list(report["transcoded"]) == ["things/image.jpg"]
    assert decode_rgb(sample["jpg"]).shape == (200, 300, 3)


def test_a_file_that_changes_while_it_is_converted_is_one_line_and_no_shard(tmp_path, monkeypatch, capsys):
    from data_tools import conversion

    source = folder_with(tmp_path, image=WHOLE)
    check_images = conversion.check_images

    def check_and_change(*arguments):
        findings = check_images(*arguments)
        (source / "things" / "image.jpg").write_bytes(WHOLE[:100])
        return findings

    monkeypatch.setattr(conversion, "check_images", check_and_change)
    assert convert(source, tmp_path / "set") == 2
    assert "'things/image.jpg' was usable when the images were checked and is not now" in capsys.readouterr().err
    assert not list((tmp_path / "set").glob("*.tar*"))


def test_short_side_resizes_what_is_larger_and_says_so(tmp_path, capsys):
    small = COFFEE.resize((120, 90))
    images = {
        "wide": jpeg_bytes(COFFEE),
        "tall": jpeg_bytes(COFFEE.rotate(90, expand=True)),
        "png": saved(COFFEE, "PNG"),
        "small": jpeg_bytes(small),
        "exact": jpeg_bytes(COFFEE.resize((180, 100))),
    }
    source = folder_with(tmp_path, **images)
    assert convert(source, tmp_path / "set", "--short-side", "100") == 0
    assert "--short-side 100: larger images are stored resized, not in their original bytes" in capsys.readouterr().err
    facts = {}
    for name, sample in by_filename(tmp_path / "set").items():
        fact = json.loads(sample["json"])
        height, width, _ = decode_rgb(sample["jpg"]).shape
        assert (fact["width"], fact["height"]) == (width, height)
        facts[name[7:-4]] = (width, height, fact.get("resized_from"), fact.get("transcoded_from"))
    assert facts == {
        "wide": (150, 100, [300, 200], None),
        "tall": (100, 150, [200, 300], None),
        "png": (150, 100, [300, 200], "PNG RGB"),
        "small": (120, 90, None, None),
        "exact": (180, 100, None, None),
    }
    report = json.loads((tmp_path / "set" / "train.report.json").read_text())
    assert (report["short_side"], report["resized"]) == (100, 3)
    assert convert(source, tmp_path / "set") == 2
    assert "holds shards of other images or options" in capsys.readouterr().err


def test_pillows_warnings_do_not_reach_the_console(tmp_path, capfd):
    broken_exif = WHOLE[:2] + b"\xff\xe1\x00\x12Exif\x00\x00II*\x00\xff\xff\xff\x7f\x00\x00" + WHOLE[2:]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(broken_exif)) as image:
            image.getexif()
    assert heard
    assert convert(folder_with(tmp_path, image=broken_exif), tmp_path / "set", "--decode") == 0
    assert "EXIF" not in capfd.readouterr().err
