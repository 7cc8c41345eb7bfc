"""The command that draws: any checkpoint, any image files, or one line that says why not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import show
from tests.checkpoint.tensors import write_by_hand
from tests.photographs import jpeg_bytes, photographs
from tests.seeing.small_encoder import CONFIG, small_pretrained
from trainer.errors import BadInput
from trainer.pretrained import load_pretrained
from trainer.pretrained.export import write_timm

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a checkpoint whose first three units, and so its first stage, are frozen."""
    directory = tmp_path_factory.mktemp("run")
    weights, recipe = small_pretrained().full, {"model": CONFIG.model_dump(mode="json")}
    write_by_hand(directory / "checkpoints", 7, weights, frozen_units=3, recipe=recipe)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A JPEG and a PNG."""
    folder = tmp_path_factory.mktemp("images")
    jpeg, png = folder / "chelsea.jpg", folder / "coffee.png"
    jpeg.write_bytes(jpeg_bytes(photographs()["chelsea"]))
    photographs()["coffee"].save(png)
    return [jpeg, png]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["show.py", *map(str, arguments)])
    return show.main()


def test_the_command_draws_every_stage_of_a_run_that_froze_some(run: Path, images: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "deep" / "pictures"
    done = subprocess.run(
        [sys.executable, "launch/show.py", "--checkpoint", run, "--images", *images, "--output", output],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ["reconstructions.png", "features.png", "attention_block_04.png"]
    assert done.stdout.split() == [str(output / name) for name in names]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    width, height = Image.open(output / "reconstructions.png").size
    assert width == round(1.75 * (2 + 2 * 2) * 200), "two stages"
    assert height == round((1.85 * 2 + 0.8) * 200), "two photographs"


def test_only_what_is_asked_for_is_drawn(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--what", "attention,features", "--attention-blocks", "1,2"]
    assert call(monkeypatch, "--checkpoint", run, "--images", *images, "--output", tmp_path, *asked) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention_block_01.png", "attention_block_02.png", "features.png"]  # fmt: skip


def test_the_mask_seed_changes_the_masks(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    for folder, seed in (("a", 0), ("b", 1)):
        asked = ["--what", "reconstructions", "--mask-seed", seed, "--output", tmp_path / folder]
        assert call(monkeypatch, "--checkpoint", run, "--images", images[0], *asked) == 0
        drawn[folder] = np.asarray(Image.open(tmp_path / folder / "reconstructions.png").convert("RGB"))
    assert (drawn["a"] != drawn["b"]).any()


def test_an_encoder_alone_says_that_it_cannot_reconstruct(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    encoder = tmp_path / "encoder.safetensors"
    write_timm(load_pretrained(run), encoder)
    arguments = ["--checkpoint", encoder, "--images", images[0], "--output", tmp_path / "out"]
    assert call(monkeypatch, *arguments) == 0
    told = capsys.readouterr().out
    assert (
        told.count("no reconstructions.png: ")
        == told.count("encoder.safetensors, step 7 holds an encoder without")
        == 1
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["attention_block_04.png", "features.png"]
    with pytest.raises(BadInput, match=r"--what reconstructions: .* without decoders.*ask for features or attention"):
        call(monkeypatch, *arguments, "--what", "reconstructions")


BAD = {
    "no such file": (["--images", "nowhere.jpg"], r"--images nowhere.jpg: cannot be read \(No such file"),
    "a folder": (["--images", "."], r"--images \.: cannot be read \(Is a directory\)"),
    "no image": (["--images", __file__], r"--images .*test_show.py: not an image \(JPEG, PNG"),
    "too many": (["--images", *["a.jpg"] * 17], "--images: 17 files; draw at most 16"),
    "unknown kind": (["--what", "features,colours"], "--what: 'colours' is not among reconstructions,features"),
    "no number": (["--mask-seed", "x"], "--mask-seed: give a number from 0"),
    "block 0": (["--attention-blocks", "0"], "--attention-blocks: give numbers of blocks from 1"),
    "block beyond": (["--attention-blocks", "1,5"], "--attention-blocks 5: .*step 7 has 4 blocks"),
    "no checkpoint": (["--checkpoint", "nowhere"], "nowhere"),
    "output that is a file": (["--output", __file__], r"--output .*test_show.py: cannot be written \(File exists\)"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = ["--checkpoint", run, "--images", images[0], "--output", tmp_path / "out"]
    with pytest.raises(BadInput, match=words) as refusal:
        call(monkeypatch, *sound, *arguments)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_half_an_image_is_refused_by_its_name(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half.png"
    half.write_bytes(images[1].read_bytes()[:5000])
    with pytest.raises(BadInput, match=r"--images .*half.png: not decodable"):
        call(monkeypatch, "--checkpoint", run, "--images", images[0], half, "--output", tmp_path / "out")


def test_the_documented_commands_work(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `launch/show.py` command of docs/seeing.md, with its paths replaced by some that exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "demo" / "run")
    text = (REPOSITORY / "docs" / "seeing.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in re.findall(r"^python launch/show\.py (.*)$", text, re.MULTILINE)]
    assert len(commands) >= 2
    for words in commands:
        words = [str(images[0]) if word.endswith((".jpg", ".png")) else word for word in words]
        words = ["2,4" if word == "4,12" else word for word in words]  # the small model has four blocks
        output = Path(words[words.index("--output") + 1])
        assert call(monkeypatch, *words) == 0
        assert list(output.glob("*.png"))
