"""From a list of images to shards and index: checked first, then written in parallel, and resumable throughout.

The result is a function of the images, their names and the seed: the number of workers has no part in it. A plan file
names what is being converted. A shard stands under its final name only when it is whole, so a run that was killed goes
on with the shards that are missing; the plan keeps shards of another conversion from being taken for ours."""

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.images import check_image
from data_tools.samples import SourceImage, shuffled, unique_keys
from data_tools.shard_scan import describe_shard
from data_tools.shard_writer import ShardTask, write_shard
from trainer.data.orphans import exit_with_parent
from trainer.data.shard_index import Shard, ShardIndex, write_index
from trainer.errors import BadInput
from trainer.files import replace_file

# Raised when the same images would give other shards than before.
_LAYOUT_VERSION = 1
# Large enough for long sequential reads, small enough to copy and to retry.
_TARGET_SHARD_BYTES = 128 * 2**20
_CHECK_CHUNK = 64
_BAD_FILES_SHOWN = 20


@dataclass(frozen=True)
class ConversionOptions:
    """Of `shards` (how many) and `shard_size` (samples in each, at most) one is given, or none: then shards hold about
    128 MiB."""

    split: str
    shards: int | None
    shard_size: int | None
    workers: int
    seed: int
    skip_bad: bool


def convert(
    images: Sequence[SourceImage], classes: Sequence[str] | None, output: Path, options: ConversionOptions
) -> ShardIndex:
    """Writes the images as shards with their index into `output`.

    Raises BadInput if there are unreadable images that are not to be skipped, or if `output` holds other shards."""
    output.mkdir(parents=True, exist_ok=True)
    plan = _Plan(output, options.split, _fingerprint(images, options))
    with _process_pool(options.workers) as pool:
        bad = plan.recall()
        if bad is None:
            bad = _check_images(pool, images)
            plan.store(bad)
        if bad and not options.skip_bad:
            raise BadInput(_bad_files_message(bad))
        good = [image for image in images if image.name not in bad]
        if not good:
            raise BadInput("none of the images can be used")
        described = _write_shards(pool, _shard_tasks(good, output, options))
    shards = [shard for shard, _ in described]
    offsets = np.concatenate([ranges for _, ranges in described])
    return write_index(output, options.split, shards, offsets, classes, bad)


class _Plan:
    """The file that says which conversion a directory's shards belong to, and what the check of its images found."""

    def __init__(self, output: Path, split: str, fingerprint: str) -> None:
        self._file = output / f".{split}.plan.json"
        self._fingerprint = fingerprint
        self._has_shards = any(output.glob(f"{split}-*.tar"))

    def recall(self) -> dict[str, str] | None:
        """Unreadable images by name, with the reason, as an earlier run of the same conversion found them; None if
        there was no such run. Raises BadInput if the shards present belong to another conversion."""
        if self._file.exists():
            plan = json.loads(self._file.read_text(encoding="utf-8"))
            if plan["fingerprint"] == self._fingerprint:
                return plan["bad"]
        if self._has_shards:
            raise BadInput(
                f"{self._file.parent} holds shards of other images or options: choose another --output, or delete them"
            )
        return None

    def store(self, bad: dict[str, str]) -> None:
        with replace_file(self._file) as stream:
            stream.write(json.dumps({"fingerprint": self._fingerprint, "bad": bad}, indent=1).encode())


def _fingerprint(images: Sequence[SourceImage], options: ConversionOptions) -> str:
    """Identifies a conversion by everything that the shards depend on. Files count as unchanged while their size and
    time are, so that a run with a terabyte of images resumes without reading them."""
    digest = hashlib.sha256()
    digest.update(repr((_LAYOUT_VERSION, options.split, options.shards, options.shard_size, options.seed)).encode())
    for image in images:
        digest.update(repr((image.name, image.num_bytes, image.modified_ns, image.label, image.class_name)).encode())
    return digest.hexdigest()


def _check_images(pool: ProcessPoolExecutor, images: Sequence[SourceImage]) -> dict[str, str]:
    """Decodes every image once; returns the unreadable ones by name, with the reason."""
    chunks = [images[first : first + _CHECK_CHUNK] for first in range(0, len(images), _CHECK_CHUNK)]
    bad: dict[str, str] = {}
    with tqdm(total=len(images), desc="checking images", unit="img") as progress:
        futures = {pool.submit(_check_chunk, chunk): len(chunk) for chunk in chunks}
        for future in as_completed(futures):
            bad.update(future.result())
            progress.update(futures[future])
    return {name: bad[name] for name in sorted(bad)}


def _check_chunk(images: Sequence[SourceImage]) -> dict[str, str]:
    bad = {}
    for image in images:
        try:
            reason = check_image(image.path.read_bytes())
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        if reason:
            bad[image.name] = reason
    return bad


def _bad_files_message(bad: dict[str, str]) -> str:
    lines = [f"  {name}: {reason}" for name, reason in list(bad.items())[:_BAD_FILES_SHOWN]]
    if len(bad) > _BAD_FILES_SHOWN:
        lines.append(f"  … and {len(bad) - _BAD_FILES_SHOWN} more")
    return "\n".join([f"{len(bad)} files are no usable images: mend or remove them, or pass --skip-bad", *lines])


def _shard_tasks(images: Sequence[SourceImage], output: Path, options: ConversionOptions) -> list[ShardTask]:
    """Deals the shuffled images out to shards whose lengths differ by one at most."""
    images = shuffled(images, options.seed)
    keys = unique_keys([image.name for image in images])
    if options.shards is not None:
        count = options.shards
    elif options.shard_size is not None:
        count = -(-len(images) // options.shard_size)
    else:
        count = -(-sum(image.num_bytes for image in images) // _TARGET_SHARD_BYTES)
    if count > len(images):
        raise BadInput(f"--shards {count} is more than the {len(images)} images: lower it")
    edges = [number * len(images) // count for number in range(count + 1)]
    return [
        ShardTask(output / f"{options.split}-{number:05d}.tar", images[first:last], keys[first:last])
        for number, (first, last) in enumerate(pairwise(edges))
    ]


def _write_shards(pool: ProcessPoolExecutor, tasks: Sequence[ShardTask]) -> list[tuple[Shard, NDArray[np.int64]]]:
    """Writes the shards that are not there yet, and describes all of them, in order."""
    futures = {pool.submit(_write_and_describe, task): number for number, task in enumerate(tasks)}
    described = {}
    with tqdm(total=sum(len(task.images) for task in tasks), desc="writing shards", unit="img") as progress:
        for future in as_completed(futures):
            number = futures[future]
            described[number] = future.result()
            progress.update(len(tasks[number].images))
    return [described[number] for number in range(len(tasks))]


def _write_and_describe(task: ShardTask) -> tuple[Shard, NDArray[np.int64]]:
    if not task.path.exists():
        write_shard(task)
    shard, ranges = describe_shard(task.path)
    if shard.num_samples != len(task.images):
        raise BadInput(f"{task.path} holds {shard.num_samples} samples instead of {len(task.images)}: delete it")
    return shard, ranges


@contextmanager
def _process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # its imports take seconds, and each worker is a fork of that process
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise BadInput(
            "a worker was killed (out of memory? then lower --workers); run the command again to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    exit_with_parent()
