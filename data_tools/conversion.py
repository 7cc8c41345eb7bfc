"""From lists of images to shards and index: all checked first, then written in parallel, and resumable throughout.

The result is a function of the images, their names and the seed: the number of workers has no part in it. A report
names what is being converted. A shard stands under its final name only when it is whole, so a run that was killed goes
on with the shards that are missing; the report keeps shards of another conversion from being taken for ours."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.image_check import CheckOptions, Findings, check_images
from data_tools.output_folder import sole_writer
from data_tools.process_pool import process_pool
from data_tools.progress import ImageProgress
from data_tools.report import Report
from data_tools.samples import SourceImage, SourceSplit, shuffled, unique_keys
from data_tools.shard_scan import describe_shard
from data_tools.shard_writer import ShardTask, write_shard
from trainer.data.shard_index import Shard, ShardIndex, write_index
from trainer.data.tar_members import shown
from trainer.errors import BadInput

# Large enough for long sequential reads, small enough to copy and to retry.
_TARGET_SHARD_BYTES = 128 * 2**20
_BAD_FILES_SHOWN = 20


@dataclass(frozen=True)
class ConversionOptions:
    """`shard_size` (samples in a shard, at most) is for splits that do not say how many shards they go into; without
    it shards hold about 128 MiB."""

    shard_size: int | None
    workers: int
    seed: int
    check: CheckOptions
    skip_bad: bool


def convert(splits: Sequence[SourceSplit], output: Path, options: ConversionOptions) -> list[ShardIndex]:
    """Writes splits as shards, each with its index, into `output`.

    Raises BadInput if images cannot be read, if there are unusable ones that are not to be skipped, if `output` holds
    other shards or cannot be written to, before anything is written as far as that can be known."""
    for split in splits:
        _refuse_equal_names(split)
        _num_shards(split, split.images, options)
    with sole_writer(output, "mend that and run the command again, it goes on from there"):
        reports = [Report.of(output, split, options.check, (options.shard_size, options.seed)) for split in splits]
        remembered = [report.recall() for report in reports]
        with process_pool(options.workers, __name__) as pool:
            findings = []
            for split, report, known in zip(splits, reports, remembered, strict=True):
                if known is None or known.unreadable:
                    known = _look(pool, split, known, options.check)
                    report.store(known)
                findings.append(known)
            _refuse_unreadable(reports, findings)
            if not options.skip_bad:
                _refuse_bad_files(reports, findings)
            return [
                _convert_split(pool, split, found, output, options)
                for split, found in zip(splits, findings, strict=True)
            ]


def summary(split: SourceSplit, index: ShardIndex, short_side: int | None) -> str:
    """What was made of a split, on one line."""
    left_out = f"; {len(index.left_out)} bad files left out" if index.left_out else ""
    resized = f", resized to a shorter side of {short_side}" if short_side else ""
    return (
        f"{index.file}: {index.num_samples} images of {len(split.classes) or 'no'} classes{resized} "
        f"in {len(index.shards)} shards{left_out}"
    )


def _refuse_equal_names(split: SourceSplit) -> None:
    seen: set[str] = set()
    for image in split.images:
        if image.name in seen:
            raise BadInput(f"{image.path} holds {shown(image.name)} twice: names have to be unique")
        seen.add(image.name)


def _look(pool: ProcessPoolExecutor, split: SourceSplit, known: Findings | None, options: CheckOptions) -> Findings:
    """What is found about a split's images; if some is known, then only those are looked at that could not be read."""
    images = split.images
    findings = Findings()
    if known is not None:
        images = [image for image in images if image.name in known.unreadable]
        findings.add(replace(known, unreadable={}))
    findings.add(check_images(pool, images, options, f"checking {split.name} images"))
    return findings.ordered()


def _refuse_unreadable(reports: Sequence[Report], findings: Sequence[Findings]) -> None:
    """Not for --skip-bad: an image behind a passing error of a disk or a network is as good as any."""
    unreadable = {name: reason for found in findings for name, reason in found.unreadable.items()}
    if unreadable:
        total = sum(report.num_images for report in reports)
        files = ", ".join(str(report.file) for report, found in zip(reports, findings, strict=True) if found.unreadable)
        raise BadInput(
            f"cannot be read: {len(unreadable)} of {total} files, whatever is in them; run the command again, it looks "
            f"at these anew, and mend or remove those that stay (all are listed in {files}):\n{_listed(unreadable)}"
        )


def _refuse_bad_files(reports: Sequence[Report], findings: Sequence[Findings]) -> None:
    bad = {name: reason for found in findings for name, reason in found.bad.items()}
    if not bad:
        return
    files = ", ".join(str(report.file) for report, found in zip(reports, findings, strict=True) if found.bad)
    total = sum(report.num_images for report in reports)
    head = f"not usable as images: {len(bad)} of {total} files; mend or remove them, or pass --skip-bad"
    raise BadInput(f"{head} (all are listed in {files}):\n{_listed(bad)}")


def _listed(reasons: Mapping[str, str]) -> str:
    lines = [f"  {shown(name)}: {reason}" for name, reason in list(reasons.items())[:_BAD_FILES_SHOWN]]
    if len(reasons) > _BAD_FILES_SHOWN:
        lines.append(f"  … and {len(reasons) - _BAD_FILES_SHOWN} more")
    return "\n".join(lines)


def _convert_split(
    pool: ProcessPoolExecutor, split: SourceSplit, findings: Findings, output: Path, options: ConversionOptions
) -> ShardIndex:
    good = [image for image in split.images if image.name not in findings.bad]
    if not good:
        raise BadInput(f"none of the {split.name} images can be used")
    for unfinished in output.glob(f"{split.name}-*.tar.tmp"):
        unfinished.unlink()
    described = _write_shards(pool, _shard_tasks(split, good, output, options), f"writing {split.name} shards")
    shards = [shard for shard, _ in described]
    offsets = np.concatenate([ranges for _, ranges in described])
    return write_index(output, split.name, shards, offsets, split.classes or None, findings.bad)


def _shard_tasks(
    split: SourceSplit, images: Sequence[SourceImage], output: Path, options: ConversionOptions
) -> list[ShardTask]:
    """Deals the shuffled images out to shards whose lengths differ by one at most."""
    images = shuffled(images, options.seed)
    keys = unique_keys([image.name for image in images])
    count = _num_shards(split, images, options)
    edges = [number * len(images) // count for number in range(count + 1)]
    return [
        ShardTask(
            output / f"{split.name}-{number:05d}.tar", images[first:last], keys[first:last], options.check.short_side
        )
        for number, (first, last) in enumerate(pairwise(edges))
    ]


def _num_shards(split: SourceSplit, images: Sequence[SourceImage], options: ConversionOptions) -> int:
    if split.num_shards is None:
        if options.shard_size is not None:
            return -(-len(images) // options.shard_size)
        return min(len(images), -(-sum(image.num_bytes for image in images) // _TARGET_SHARD_BYTES))
    if split.num_shards > len(images):
        raise BadInput(f"{split.num_shards} shards are more than the {len(images)} {split.name} images: ask for fewer")
    return split.num_shards


def _write_shards(
    pool: ProcessPoolExecutor, tasks: Sequence[ShardTask], desc: str
) -> list[tuple[Shard, NDArray[np.int64]]]:
    """Writes the shards that are not there yet, and describes all of them, in order."""
    futures = {pool.submit(_write_and_describe, task): number for number, task in enumerate(tasks)}
    described = {}
    with ImageProgress(sum(len(task.images) for task in tasks), desc) as progress:
        for future in as_completed(futures):
            number = futures[future]
            described[number] = future.result()
            shard, _ = described[number]
            progress.add(shard.num_samples, shard.num_bytes)
    return [described[number] for number in range(len(tasks))]


def _write_and_describe(task: ShardTask) -> tuple[Shard, NDArray[np.int64]]:
    if not task.path.exists():
        write_shard(task)
    shard, ranges = describe_shard(task.path)
    if shard.num_samples != len(task.images):
        raise BadInput(f"{task.path} holds {shard.num_samples} samples instead of {len(task.images)}: delete it")
    return shard, ranges
