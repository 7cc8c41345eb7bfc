"""The study's images without a network: a small Fashion-MNIST in the layout of its Debian package, made up, and the
packages of photographs with those that the tests have."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.photographs import photographs

IMAGES = {"train": 330, "t10k": 90}


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked package where the study looks for it. A class is a direction of stripes. Returns
    the folder of the cache."""
    cache = tmp_path / "cache"
    folder = cache / "localmim-freeze/studies/dataset-fashion-mnist/usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:28, 0:28]
    for name, count in IMAGES.items():
        labels = random.integers(10, size=count, dtype=np.uint8)
        angles = labels[:, None, None] * np.pi / 10
        waves = np.sin(x * np.cos(angles) + y * np.sin(angles) + random.uniform(0, 6, (count, 1, 1)))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", (127 + 100 * waves).astype(np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return cache


@pytest.fixture
def photograph_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photographs in each of the two packages of `data_tools photographs`. Returns the folder of the cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    places = ("lomiri-wallpapers-16.04/usr/share/backgrounds", "scratch/usr/share/scratch/Media/Backgrounds/Nature")
    for number, (name, photograph) in enumerate(sorted(photographs().items())):
        folder = cache / "localmim-freeze/photographs" / places[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"{name}.jpg", quality=95)
    return cache
