"""The photographs that the benchmarks read: as a folder of class folders, and as the shards made from it."""

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from data_tools.photograph_sources import user_cache
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput

SIZE = (500, 375)  # width and height that most of ImageNet's images have
# Tiles of downscaled wallpapers are smoother than a camera's picture and make smaller files. Some sharpening and noise
# bring them to about 100 kB at quality 95, near ImageNet's mean of 110 kB: decoding time goes with the bytes.
_SHARPENING = ImageFilter.UnsharpMask(radius=1, percent=60, threshold=0)
_NOISE = 8.0  # standard deviation, of 255
_QUALITY = 95


@dataclass(frozen=True)
class Corpus:
    """A folder of class folders of images, and the shards that hold the same images."""

    folder: Path
    shards: Path
    images: int
    image_bytes: int

    @property
    def index(self) -> ShardIndex:
        return ShardIndex.open(self.shards)

    @property
    def shard_files(self) -> list[str]:
        return sorted(map(str, self.shards.glob("*.tar")))


def make_corpus(source: Path | None, images: int, work: Path) -> Corpus:
    """At most `images` files spread evenly over those below `source` (default: photographs, see `_photographs`), linked
    and converted into the folder `work`. Raises BadInput if there are fewer than 32."""
    files = sorted(path for path in (source or _photographs()).glob("*/*") if path.is_file())
    if len(files) < 32:
        raise BadInput(f"--corpus {source}: {len(files)} files in class folders; want a folder of class folders, >= 32")
    chosen = [files[number * len(files) // min(images, len(files))] for number in range(min(images, len(files)))]
    folder = work / "folder"
    for path in chosen:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path.resolve())
    shards = work / "shards"
    per_shard = max(8, len(chosen) // 10)
    _data_tools("imagefolder", "--input", folder, "--output", shards, "--shard-size", per_shard, "--workers", 2)
    return Corpus(folder, shards, len(chosen), sum(path.stat().st_size for path in chosen))


def _photographs() -> Path:
    """ImageNet-like photographs, made once and kept in the user's cache: `data_tools photographs`, sharpened, with
    noise."""
    cache = user_cache("benchmarks")
    done = cache / f"photographs-{SIZE[0]}x{SIZE[1]}"
    if not done.is_dir():
        tiles = cache / "tiles"
        _data_tools("photographs", "--output", tiles, "--size", f"{SIZE[0]}x{SIZE[1]}")
        unfinished = done.with_suffix(".tmp")
        for number, path in enumerate(sorted(tiles.rglob("*.jpg"))):
            target = unfinished / path.relative_to(tiles)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_like_a_camera(path, number))
        unfinished.rename(done)
    return done


def _like_a_camera(path: Path, seed: int) -> bytes:
    with Image.open(path) as tile:
        image = ImageOps.fit(tile.convert("RGB"), SIZE, Image.Resampling.LANCZOS).filter(_SHARPENING)
    noise = np.random.default_rng(seed).normal(0.0, _NOISE, (SIZE[1], SIZE[0], 3))
    noisy = Image.fromarray((np.asarray(image) + noise).clip(0, 255).round().astype(np.uint8))
    stream = io.BytesIO()
    noisy.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _data_tools(*arguments: object) -> None:
    command: Sequence[str] = [sys.executable, "-m", "data_tools", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    if finished.returncode:
        complaint = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise BadInput(f"{' '.join(command[2:4])}: {complaint}")
