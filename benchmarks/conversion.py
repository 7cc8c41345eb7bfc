"""Images per second into shards, bytes copied as they are: data_tools beside a webdataset ShardWriter script."""

import cProfile
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import webdataset as wds
from PIL import Image

from benchmarks.corpus import Corpus
from benchmarks.rounds import ratio_text, take_turns
from benchmarks.tables import Section
from data_tools import image_check
from data_tools.imagefolder import scan_folder
from data_tools.process_pool import process_pool
from data_tools.samples import SourceImage, shuffled, unique_keys
from data_tools.shard_scan import describe_shard
from data_tools.shard_writer import ShardTask, write_shard

# What a conversion does, by the function that does it, as the profiler names them here.
_STEPS = {
    "samples.py:read": "reading the images",
    "images.py:shard_image": "image headers (Pillow)",
    "tarfile.py:addfile": "tar headers and writing (tarfile)",
    "<built-in method posix.fsync>": "waiting for the disk (fsync)",
    "hashlib.py:file_digest": "reading back for sha256",
    "tar_members.py:members_of_archive": "reading back for byte ranges",
}


def conversion_section(corpus: Corpus, work: Path, *, rounds: int) -> Section:
    """One process each; wall time, since a part of it is waiting for the disk."""
    images, _ = scan_folder(corpus.folder)
    images = shuffled(images, seed=0)
    keys = unique_keys([image.name for image in images])
    target = work / "conversion"

    def into_empty_folder(convert: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            return _seconds(convert) / len(images)

        return measure

    def ours(*, describe: bool) -> None:
        task = ShardTask(target / "train-00000.tar", images, keys)
        write_shard(task)
        if describe:
            describe_shard(task.path)

    with process_pool(1, image_check.__name__) as pool, redirect_stderr(io.StringIO()):
        options = image_check.CheckOptions(decode=False, short_side=None)
        contenders = {
            "webdataset ShardWriter script": into_empty_folder(lambda: _shard_writer(images, keys, target)),
            "the same, then fsync and sha256": into_empty_folder(lambda: _lasting(images, keys, target)),
            "data_tools: write (with fsync)": into_empty_folder(lambda: ours(describe=False)),
            "data_tools: write, sha256, byte ranges": into_empty_folder(lambda: ours(describe=True)),
            "data_tools: check of all headers, before": lambda: (
                _seconds(lambda: image_check.check_images(pool, images, options, "")) / len(images)
            ),
        }
        costs = take_turns(contenders, rounds)
    into_empty_folder(lambda: None)()
    profile = _profile(lambda: ours(describe=True))
    shutil.rmtree(target)
    baseline = next(iter(costs.values()))
    kilobytes = corpus.image_bytes / corpus.images / 1e3
    rows = [
        [
            name,
            f"{cost.median_rate:.0f} ({cost.best_rate:.0f})",
            f"{cost.median_rate * kilobytes / 1e3:.0f}",
            ratio_text(cost, baseline),
        ]
        for name, cost in costs.items()
    ]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in profile.items())
    return Section(
        "Converting: images per second and process, bytes copied",
        f"The same {len(images)} images into one shard: KEY.cls, KEY.jpg, and KEY.json with the size from the image's "
        "header. Page cache warm; wall time; median round and, in brackets, the best. ShardWriter writes in place and "
        "neither syncs nor hashes.",
        ["writer", "img/s", "MB/s", "× ShardWriter"],
        rows,
        [f"Where the time of *write, sha256, byte ranges* goes, by a profile of one pass: {shares}."],
    )


def _shard_writer(images: list[SourceImage], keys: list[str], target: Path) -> None:
    """As the scripts that people write, but for opening each image's header to record its size."""
    with wds.ShardWriter(f"{target}/train-%05d.tar", maxcount=len(images), verbose=0) as writer:
        for image, key in zip(images, keys, strict=True):
            content = image.path.read_bytes()
            with Image.open(io.BytesIO(content)) as header:
                width, height = header.size
            facts = {"filename": image.name, "label": image.label, "width": width, "height": height}
            writer.write({"__key__": key, "cls": image.label, "jpg": content, "json": json.dumps(facts).encode()})


def _lasting(images: list[SourceImage], keys: list[str], target: Path) -> None:
    _shard_writer(images, keys, target)
    for path in target.glob("*.tar"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256")


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _profile(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time by step, the largest first; the profiler makes those that are all Python look larger."""
    profile = cProfile.Profile()
    profile.runcall(work)
    entries = profile.getstats()
    whole = max(entry.totaltime for entry in entries)
    shares = {"the rest": 1.0}
    for entry in entries:
        code = entry.code
        where = code if isinstance(code, str) else f"{code.co_filename}:{code.co_name}"
        step = next((name for function, name in _STEPS.items() if where.endswith(function)), None)
        if step:
            shares[step] = entry.totaltime / whole
            shares["the rest"] -= shares[step]
    return dict(sorted(shares.items(), key=lambda item: item[1], reverse=True))
