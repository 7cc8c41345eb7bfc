"""Shards as other tools make them: their file names, their members, their order, written with their own code where it
can be had."""

import io
import json
import subprocess
from pathlib import Path

import webdataset
from PIL import Image

from tests.photographs import jpeg_bytes, photographs

PER_SHARD = 6


def tiles(count: int) -> list[tuple[int, Image.Image]]:
    """Pictures with their class numbers, no two alike."""
    found = list(photographs().values())
    return [
        (number % len(found), found[number % len(found)].crop((number, number, number + 96, number + 72)))
        for number in range(count)
    ]


def encoded(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def by_webdataset(folder: Path) -> list[Path]:
    """webdataset.ShardWriter as its documentation uses it, with its encoders; formats and cases of extensions mixed."""
    kinds = [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("JPG", "JPEG"), ("PNG", "PNG")]
    with webdataset.ShardWriter(str(folder / "photos-%06d.tar"), maxcount=PER_SHARD, verbose=0) as writer:
        for number, (label, image) in enumerate(tiles(12)):
            extension, format = kinds[number % len(kinds)]
            writer.write({"__key__": f"{number:06d}", extension: encoded(image, format), "cls": label})
    return sorted(folder.glob("*.tar"))


def by_img2dataset(folder: Path) -> list[Path]:
    """00000.tar with 000000000.jpg, .txt, .json, which is webdataset's TarWriter, and two files beside each tar."""
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number, (_, image) in enumerate(tiles(2 * PER_SHARD)[shard * PER_SHARD :][:PER_SHARD]):
                key = f"{shard:05d}{number:04d}"
                record = {
                    "url": "https://example.org/x.jpg",
                    "key": key,
                    "status": "success",
                    "width": 96,
                    "height": 72,
                }
                writer.write({"__key__": key, "jpg": jpeg_bytes(image), "txt": "a photograph", "json": record})
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": PER_SHARD, "successes": PER_SHARD}))
    return sorted(folder.glob("*.tar"))


def by_timm(folder: Path) -> list[Path]:
    """The layout of timm/imagenet-1k-wds: both splits and _info.json in one folder, labels in .cls and .json."""
    for split in ("train", "validation"):
        for shard in range(2):
            with webdataset.TarWriter(str(folder / f"imagenet1k-{split}-{shard:04d}.tar")) as writer:
                for number, (label, image) in enumerate(tiles(2 * PER_SHARD)[shard * PER_SHARD :][:PER_SHARD]):
                    key = f"n0{1440764 + label}_{shard}{number:02d}"
                    record = {"filename": f"{key}.JPEG", "label": label, "height": 72, "width": 96}
                    writer.write({"__key__": key, "cls": label, "jpg": jpeg_bytes(image), "json": record})
    splits = {
        split: {
            "name": split,
            "num_samples": 12,
            "filenames": [f"imagenet1k-{split}-{{0000..0001}}.tar"],
            "shard_lengths": [6, 6],
        }
        for split in ("train", "validation")
    }
    (folder / "_info.json").write_text(json.dumps({"name": "imagenet1k", "splits": splits}))
    return sorted(folder.glob("*-train-*.tar"))


def by_tar(folder: Path, format: str) -> list[Path]:
    """`tar` over folders of files with long names: leading ./, entries for folders, and extended headers."""
    for shard in range(2):
        source = folder / f"files-{shard}"
        below = source / ("class folder " * 7) / "naïve 名前"
        below.mkdir(parents=True)
        for number, (label, image) in enumerate(tiles(2 * PER_SHARD)[shard * PER_SHARD :][:PER_SHARD]):
            (below / f"{'photograph-' * 8}{shard}{number}.jpg").write_bytes(jpeg_bytes(image))
            (below / f"{'photograph-' * 8}{shard}{number}.cls").write_text(f"{label}\n")
        tar = folder / f"by-tar-{shard}.tar"
        command = [
            "tar",
            "--create",
            f"--format={format}",
            "--sort=name",
            "--file",
            str(tar),
            "--directory",
            str(source),
            ".",
        ]
        subprocess.run(command, check=True)
    return sorted(folder.glob("*.tar"))
