"""`show` tells the truth about a data set, and draws it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.contact_sheet import Picture, draw_sheet
from tests.photographs import photographs
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex


def show(directory: Path, capsys: pytest.CaptureFixture, *more: object) -> dict[str, str]:
    """Its lines by their first words."""
    assert main(["show", str(directory), *map(str, more)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if re.search(r"\S\s{2,}\S", line))


@pytest.fixture(scope="module")
def odd(photograph_folder, tmp_path_factory) -> Path:
    """Shards of the folder that holds a grey JPEG, a CMYK one and a PNG beside photographs."""
    output = tmp_path_factory.mktemp("odd") / "set"
    command = [
        "imagefolder",
        "--input",
        str(photograph_folder),
        "--output",
        str(output),
        "--shards",
        "3",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    return output


def test_statistics_are_those_of_the_samples(odd, capsys):
    index = ShardIndex.open(odd)
    samples = [parse_sample(raw) for raw in read_samples(index, np.arange(index.num_samples))]
    lines = show(odd, capsys)
    assert lines["samples in a shard"] == "10 to 11, mean 10.7"
    assert lines["formats"] == "JPEG RGB 31, JPEG L 1"
    assert lines["changed"] == "2 transcoded and 0 resized by the converter"
    assert lines["labels"] == "of 7 classes"
    assert lines["width"].startswith("median 15")
    assert lines["width"].endswith("all 157 to 200")
    sizes = sorted(len(sample.image) for sample in samples)
    assert lines["bytes of an image"].endswith(f"all {sizes[0] / 1000:.1f} kB to {sizes[-1] / 1000:.1f} kB")
    bars = {name: lines[name] for name in index.classes or ()}
    assert {name: int(bar.split()[-1]) for name, bar in bars.items()} == {
        name: sum(sample.label == label for sample in samples) for label, name in enumerate(index.classes or ())
    }
    assert len(bars["odd"]) > len(bars["china"])


def test_other_splits_in_the_folder_are_named(shards, tmp_path, capsys):
    directory = Path(shutil.copytree(shards, tmp_path / "copy"))
    assert "other splits" not in show(directory, capsys, "--subset", 1)
    shutil.copy(directory / "train.json", directory / "validation.json")
    assert show(directory, capsys, "--subset", 1)["other splits"] == "validation (--split shows them)"


def test_a_subset_is_called_one(shards, capsys):
    assert main(["show", str(shards), "--subset", "20"]) == 0
    printed = capsys.readouterr().out
    assert "150 samples in 6 shards" in printed
    assert "Of 20 random samples:" in printed
    counts = [int(count) for count in re.findall(r"█ (\d+)", printed)]
    assert sum(counts) == 20


def test_the_sheet_shows_the_samples_and_the_seed_decides_which(shards, tmp_path, capsys):
    sheets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        show(shards, capsys, "--output", tmp_path / name / "sheet.png", "--samples", 12, "--seed", seed)
        sheets.append(np.asarray(Image.open(tmp_path / name / "sheet.png")))
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    assert sheets[0].std() > 30


def test_each_picture_stands_in_a_frame_of_its_own():
    pixels = [np.asarray(photograph) for photograph in photographs().values()]
    pixels += [pixels[0][:20], pixels[0][:, :9], np.full((1, 1, 3), 200, dtype=np.uint8)]
    pictures = [Picture(p, "a very long key " * 20, "caption\n\x00") for p in pixels] + [Picture(None, "key", "lost")]
    sheet = np.asarray(draw_sheet(pictures, "a title")).astype(int)
    assert sheet.shape == (44 + 3 * 176 + 14, 4 * 182 + 14, 3)
    # Whatever the pictures' shapes and the length of their captions, the gaps between the columns stay white.
    for column in range(1, 4):
        assert (sheet[44:, column * 182 : column * 182 + 14] == 255).all()


def test_samples_that_cannot_be_read_are_counted_and_drawn_as_such(shards, tmp_path, capsys):
    directory = Path(shutil.copytree(shards, tmp_path / "copy"))
    index = ShardIndex.open(directory)
    with open(index.shard_path(0), "r+b") as file:
        for sample in (1, 2):
            file.seek(int(index.offsets[sample, 0]) + 1024)
            file.write(bytes(3000))
    lines = show(directory, capsys, "--output", tmp_path / "sheet.png", "--samples", 150)
    assert lines["unreadable"] == "2; `verify --decode` names them"
    assert (tmp_path / "sheet.png").exists()


def test_what_cannot_be_shown_is_one_line(shards, tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 2
    assert "show: no shard index at" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["show", str(shards), "--output", str(tmp_path / "file" / "sheet.png")]) == 2
    assert "sheet.png cannot be written" in capsys.readouterr().err
