"""Says what is in a data set: how many samples, how large, which formats and classes; and draws some of them.

INDEX is a directory with an index, or the index's .json; a path or a URL. Counts of samples and bytes come from the
index. Sizes, formats and labels are those of a random subset (all samples, if they are no more). The contact sheet
shows random samples as training sees them: without EXIF orientation."""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.arguments import positive, split_name
from data_tools.contact_sheet import Picture, draw_sheet
from data_tools.progress import ImageProgress
from data_tools.sample_facts import SampleFacts, gather_facts, read_chunk
from data_tools.splits import splits_in
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.data.errors import ShardError
from trainer.data.reader import RawSample, parse_sample
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.errors import BadInput
from trainer.files import replace_file

SUMMARY = "print statistics of a data set and draw some samples"

_CLASSES_SHOWN = 8  # at each end
_BAR = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory with an index, or its .json; a path or a URL")
    parser.add_argument(
        "--split", type=split_name, default="train", help="name of the split, for a directory (default: train)"
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="draw a contact sheet into this file")
    parser.add_argument("--samples", type=positive, default=64, help="on the contact sheet (default: 64)")
    parser.add_argument("--subset", type=positive, default=10_000, help="samples to look into (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """Raises BadInput if there is no index, a shard is missing, or the picture cannot be written."""
    index = ShardIndex.open(arguments.index, arguments.split)
    order = np.random.default_rng(arguments.seed).permutation(index.num_samples)
    print("\n".join(_index_lines(index)))
    if others := [split for split in splits_in(arguments.index) if split != arguments.split]:
        print(_line("other splits", f"{', '.join(others)} (--split shows them)"))
    subset = order[: arguments.subset]
    facts: list[SampleFacts | None] = []
    # Pillow warns of damaged EXIF, which nothing here reads.
    with warnings.catch_warnings(action="ignore"), ImageProgress(len(subset), "looking into samples") as progress:
        for chunk in gather_facts(index, subset):
            facts += chunk
            progress.add(len(chunk), sum(fact.num_bytes for fact in chunk if fact))
    print("\n".join(_subset_lines(facts, index)))
    if arguments.output is not None:
        _write_sheet(index, order[: arguments.samples], arguments.output)


def _index_lines(index: ShardIndex) -> list[str]:
    lengths = index.shard_lengths
    sizes = np.array([shard.num_bytes for shard in index.shards])
    lines = [
        f"{index.name}: {index.num_samples:,} samples in {len(lengths):,} shards, {_bytes(int(sizes.sum()))}",
        _line("samples in a shard", f"{lengths.min():,} to {lengths.max():,}, mean {lengths.mean():,.1f}"),
        _line("bytes of a shard", f"{_bytes(sizes.min())} to {_bytes(sizes.max())}, mean {_bytes(sizes.mean())}"),
        _line(
            "bytes of a sample", f"mean {_bytes(sizes.sum() / index.num_samples)}, labels, headers and padding included"
        ),
    ]
    if index.left_out:
        lines.append(_line("left out", f"{len(index.left_out):,} source files that were no usable images"))
    return lines


def _subset_lines(facts: Sequence[SampleFacts | None], index: ShardIndex) -> list[str]:
    known = [fact for fact in facts if fact is not None]
    share = "all" if len(facts) == index.num_samples else f"{len(facts):,} random"
    lines = [f"Of {share} samples:"]
    if len(known) < len(facts):
        lines.append(_line("unreadable", f"{len(facts) - len(known):,}; `verify --decode` names them"))
    if not known:
        return lines
    formats = Counter(f"{fact.header.format} {fact.header.mode}" for fact in known)
    labels = Counter(fact.label for fact in known if fact.label >= 0)
    lines += [
        _line("width", _spread([fact.header.width for fact in known], str)),
        _line("height", _spread([fact.header.height for fact in known], str)),
        _line("bytes of an image", _spread([fact.num_bytes for fact in known], _bytes)),
        _line("formats", ", ".join(f"{name} {count:,}" for name, count in formats.most_common())),
    ]
    transcoded, resized = sum(fact.transcoded for fact in known), sum(fact.resized for fact in known)
    if transcoded or resized:
        lines.append(_line("changed", f"{transcoded:,} transcoded and {resized:,} resized by the converter"))
    unlabelled = len(known) - labels.total()
    lines.append(
        _line("labels", f"of {len(labels):,} classes" + (f", {unlabelled:,} samples without" if unlabelled else ""))
    )
    return lines + _histogram(labels, index.classes)


def _histogram(labels: Counter[int], classes: Sequence[str] | None) -> list[str]:
    """A bar for each class; of many classes, for the most and the least frequent."""
    ranked = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return []
    names = {label: class_name(label, classes)[:28] for label, _ in ranked}
    width = max(map(len, names.values()))
    longest = ranked[0][1]
    bars = [
        f"  {names[label]:<{width}}  {'█' * max(1, round(_BAR * count / longest))} {count:,}" for label, count in ranked
    ]
    if len(bars) > 2 * _CLASSES_SHOWN + 1:
        between = f"  … {len(bars) - 2 * _CLASSES_SHOWN:,} classes between …"
        bars = [*bars[:_CLASSES_SHOWN], between, *bars[-_CLASSES_SHOWN:]]
    return ["Classes:", *bars]


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """What to call a label: its class's name, if the index holds names."""
    if label < 0:
        return "no label"
    return classes[label] if classes and label < len(classes) else f"label {label}"


def _write_sheet(index: ShardIndex, samples: NDArray[np.int64], file: Path) -> None:
    pictures = [_picture(raw, index) for raw in read_chunk(index, samples, Storage())]
    sheet = draw_sheet(pictures, f"{index.name}: {len(pictures):,} of {index.num_samples:,} samples")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as stream:
            sheet.save(stream, "PNG")
    except OSError as error:
        raise BadInput(f"--output {file} cannot be written: {error.strerror}") from error
    print(f"{file}: {len(pictures)} random samples")


def _picture(raw: RawSample | None, index: ShardIndex) -> Picture:
    if raw is None:
        return Picture(None, "", "")
    try:
        sample = parse_sample(raw)
    except ShardError:
        return Picture(None, raw.where, "")
    caption = class_name(sample.label, index.classes)
    try:
        return Picture(decode_rgb(sample.image), sample.key, caption)
    except UndecodableImage:
        return Picture(None, sample.key, caption)


def _line(name: str, value: str) -> str:
    return f"  {name:<18}  {value}"


def _spread(values: Sequence[int], show: Callable[[int], str]) -> str:
    least, low, median, high, most = np.percentile(values, [0, 5, 50, 95, 100]).round().astype(int).tolist()
    return f"median {show(median)}, 5–95 % {show(low)} to {show(high)}, all {show(least)} to {show(most)}"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
