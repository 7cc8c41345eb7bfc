"""What it costs to go on at nine tenths of an epoch: the bytes that are read until the epoch's end."""

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from torchvision import datasets

from benchmarks.corpus import Corpus
from benchmarks.machine import bytes_read
from benchmarks.tables import Section
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.order import LaneOrder

_RESUME_AT = 0.9
_BATCH = 16
IMAGENET_SAMPLES, IMAGENET_SHARDS, IMAGENET_BYTES = 1_281_167, 1024, 110e3


def resume_section(corpus: Corpus) -> Section:
    """Bytes counted as the kernel hands them out, beside the share of the epoch that was left to read."""
    index = corpus.index
    shards = sum(shard.num_bytes for shard in index.shards)
    steps = index.num_samples // _BATCH
    start = int(_RESUME_AT * steps)
    left = 1 - start / steps
    ways: dict[str, tuple[Callable[[], object], float]] = {
        "LaneLoader, started at the step": (lambda: _lanes(corpus, start, steps), shards),
        "webdataset, samples skipped": (lambda: _skip(_webdataset(corpus), start * _BATCH), shards),
        "ImageFolder + DataLoader, batches skipped": (lambda: _skip(_image_folder(corpus), start), corpus.image_bytes),
    }
    _lanes(corpus, steps - 1, steps)  # imports what is imported on first use, outside the count
    rows = []
    for name, (way, total) in ways.items():
        before = bytes_read()
        way()
        count = bytes_read() - before
        rows.append([name, f"{count / 1e6:.1f}", f"{count / total:.1%}", f"{count / total - left:+.1%}"])
    extra = imagenet_extra_samples()
    return Section(
        "Resuming at 90 % of an epoch: bytes read to finish it",
        f"{index.num_samples} samples in batches of {_BATCH}, {start} of {steps} batches done, so {left:.1%} are left; "
        "the lane loader with 4 lanes and windows of 8. Counted by the kernel (`rchar`). The two others have to read "
        "again what they pass over.",
        ["loader", "MB read", "of the epoch", "beyond what is left"],
        rows,
        [
            f"By the same arithmetic for ImageNet ({IMAGENET_SAMPLES:,} samples, batch 4096, 256 lanes, windows of 64) "
            f"{extra:,} samples or {extra * IMAGENET_BYTES / 1e9:.2f} GB over all ranks are read a second time, "
            f"{extra / IMAGENET_SAMPLES:.2%} of an epoch."
        ],
    )


def imagenet_extra_samples() -> int:
    """Samples of blocks begun before the step at which an ImageNet-sized epoch is nine tenths done."""
    edges = np.linspace(0, IMAGENET_SAMPLES, IMAGENET_SHARDS + 1).astype(np.int64)
    order = LaneOrder(edges[1:] - edges[:-1], seed=0, global_batch=4096, lanes=256, window=64)
    first = int(_RESUME_AT * order.steps_per_epoch) * order.global_batch
    return sum(order.place(first + lane)[2] for lane in range(order.lanes))


def _lanes(corpus: Corpus, start: int, end: int) -> None:
    loader = LaneLoader(
        corpus.index,
        DataConfig(workers=0, lanes=4, window=8),
        image_size=32,
        seed=0,
        global_batch=_BATCH,
        micro_batch=_BATCH,
        rank=0,
        world_size=1,
        start_step=start,
        end_step=end,
    )
    for _ in loader:
        pass


def _webdataset(corpus: Corpus) -> Iterable[object]:
    return wds.WebDataset(corpus.shard_files, shardshuffle=False).shuffle(64)


def _image_folder(corpus: Corpus) -> Iterable[object]:
    dataset = datasets.ImageFolder(str(corpus.folder), transform=lambda image: torch.tensor(image.size))
    return DataLoader(dataset, _BATCH, shuffle=True, drop_last=True)


def _skip(stream: Iterable[object], count: int) -> None:
    for _ in islice(stream, count, None):
        pass
