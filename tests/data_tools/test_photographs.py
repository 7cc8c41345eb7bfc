"""The photographs for the demo come from Debian packages, or from Python packages where there is no apt-get."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.__main__ import main
from tests.photographs import photographs


def gather(tmp_path: Path, *more: str) -> int:
    arguments = ["--output", str(tmp_path / "photos"), "--cache", str(tmp_path / "cache"), *more]
    return main(["photographs", *arguments])


def jpegs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


@pytest.fixture
def no_apt(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def fake_apt(tmp_path, monkeypatch) -> Path:
    """An apt-get and a dpkg-deb whose packages hold one large photograph, one small one and one drawing."""
    large = photographs()["china"].resize((2100, 1600), Image.Resampling.BICUBIC)
    small = photographs()["flower"].resize((480, 360), Image.Resampling.BICUBIC)
    source = tmp_path / "source"
    source.mkdir()
    large.save(source / "large.jpg")
    small.save(source / "small.jpg")
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {
        "apt-get": f'echo "$1" "$2" >> {tmp_path}/log; if [ "$1" = download ]; then echo "$2" > "$2.deb"; fi',
        "dpkg-deb": f"""
            case $(cat "$2") in
                scratch) folder="$3/usr/share/scratch/Media/Backgrounds/Nature"; photo=small drawing=room1 ;;
                *) folder="$3/usr/share/backgrounds"; photo=large drawing=umang_by_Abhishek_Mudgal ;;
            esac
            mkdir -p "$folder"
            cp {source}/$photo.jpg "$folder/A $photo one.jpg"
            cp {source}/small.jpg "$folder/$drawing.jpg" """,
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return programs


def test_debian_photographs_are_cut_into_tiles_and_drawings_left_out(fake_apt, tmp_path):
    assert gather(tmp_path, "--size", "500x375") == 0
    tiles = jpegs(tmp_path / "photos")
    folders = {name.split("/")[0] for name in tiles}
    assert folders == {"a_large_one", "a_small_one"}
    sizes = {name: Image.open(tmp_path / "photos" / name).size for name in tiles}
    assert [size for name, size in sizes.items() if name.startswith("a_small_one")] == [(480, 360)]
    large = [size for name, size in sizes.items() if name.startswith("a_large_one")]
    assert set(large[:-1]) == {(500, 375)}
    assert 10 < len(large) <= 4 * 4 + 2 * 2 + 1


def test_packages_are_fetched_once(fake_apt, tmp_path):
    assert gather(tmp_path) == 0
    first = jpegs(tmp_path / "photos")
    (tmp_path / "photos").rename(tmp_path / "before")
    assert gather(tmp_path) == 0
    assert jpegs(tmp_path / "photos") == first
    assert (tmp_path / "log").read_text().split() == ["download", "lomiri-wallpapers-16.04", "download", "scratch"]


def test_package_lists_are_updated_where_the_download_fails(fake_apt, tmp_path, capsys):
    script = fake_apt / "apt-get"
    script.write_text(script.read_text().replace("if ", "[ -e updated ] || { touch updated; exit 1; }; if "))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert gather(tmp_path) == 0
    assert "scikit" not in capsys.readouterr().err
    assert (tmp_path / "log").read_text().split()[::2][:3] == ["download", "update", "download"]


def test_without_apt_one_line_tells_of_the_fallback(no_apt, tmp_path, capsys):
    assert gather(tmp_path) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "scikit-image's and scikit-learn's" in line]
    assert len(told) == 1
    tiles = jpegs(tmp_path / "photos")
    assert {name.split("/")[0] for name in tiles} >= {"astronaut", "chelsea", "china", "coffee", "flower", "rocket"}
    assert len(tiles) == 8 * 25


def test_the_result_is_the_same_every_time(no_apt, tmp_path):
    for run in ("a", "b"):
        assert gather(tmp_path / run) == 0
    assert jpegs(tmp_path / "a" / "photos") == jpegs(tmp_path / "b" / "photos")


def test_without_a_home_directory_only_its_cache_is_missed(no_apt, tmp_path, monkeypatch, capsys):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert main(["photographs", "--output", str(tmp_path / "photos")]) == 2
    assert "photographs: no home directory to keep downloads in: set XDG_CACHE_HOME" in capsys.readouterr().err
    assert gather(tmp_path, "--limit", "1") == 0


def test_a_cache_that_cannot_be_written_is_a_reason_for_the_fallback(fake_apt, tmp_path, capsys):
    (tmp_path / "cache").write_text("")
    assert gather(tmp_path, "--limit", "1") == 0
    assert f"{tmp_path}/cache" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(no_apt, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "photos"
    assert main(["photographs", "--output", str(output), "--cache", str(tmp_path / "cache")]) == 2
    assert f"photographs: --output {output} cannot be made (" in capsys.readouterr().err


def test_the_limit_is_kept(no_apt, tmp_path):
    assert gather(tmp_path, "--limit", "30") == 0
    assert len(jpegs(tmp_path / "photos")) == 30


def test_what_is_there_is_kept(no_apt, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("keep")
    assert gather(tmp_path) == 0
    assert "kept as it is" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.txt"]


def test_tiles_without_detail_are_dropped(fake_apt, tmp_path):
    flat = photographs()["china"].resize((2000, 1500), Image.Resampling.BICUBIC)
    flat.paste((90, 140, 200), (0, 0, 2000, 750))
    flat.save(tmp_path / "source" / "large.jpg")
    assert gather(tmp_path, "--size", "500x375") == 0
    tiles = sorted((tmp_path / "photos" / "a_large_one").iterdir())
    for tile in tiles:
        assert np.asarray(Image.open(tile).convert("L")).std() > 5
    assert len(tiles) <= 8 + 2 + 1
