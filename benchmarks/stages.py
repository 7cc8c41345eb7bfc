"""Where the lane loader's time goes: each of its steps alone."""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.corpus import Corpus
from benchmarks.loaders import IMAGE_SIZE, lanes
from benchmarks.rounds import cpu_seconds, take_turns
from benchmarks.tables import Section
from trainer.data.augment import Box, crop_and_resize, random_box
from trainer.data.batches import Share, assemble
from trainer.data.config import DataConfig
from trainer.data.counter_rng import UniformStream
from trainer.data.decode import decode_rgb
from trainer.data.reader import parse_sample, read_samples

_WHOLE = "LaneLoader, all of it"


def stage_section(corpus: Corpus, *, samples: int, rounds: int) -> Section:
    """What each step costs per image, beside the whole."""
    samples = min(samples, corpus.images)
    stream = lanes(corpus, 0, samples)
    steps = _steps(corpus, samples) | {_WHOLE: lambda: next(stream)}
    costs = take_turns({name: cpu_seconds(step, samples) for name, step in steps.items()}, rounds)
    microseconds = {name: 1e6 / cost.median_rate for name, cost in costs.items()}
    return Section(
        "Where the lane loader's time goes",
        f"CPU time per image of each step alone, over the same {samples} images, and of the loader in process with "
        f"batches of {samples}; median of {rounds} rounds.",
        ["step", "µs per image", "share"],
        [[name, f"{cost:.0f}", f"{cost / microseconds[_WHOLE]:.1%}"] for name, cost in microseconds.items()],
    )


def _steps(corpus: Corpus, samples: int) -> dict[str, Callable[[], object]]:
    """Each works on what the one before it made of the first so many samples."""
    index, config = corpus.index, DataConfig()
    chosen = np.arange(samples, dtype=np.int64)
    raw = read_samples(index, chosen)
    parsed = [parse_sample(each) for each in raw]
    pixels = [decode_rgb(sample.image) for sample in parsed]

    def draw_boxes() -> list[Box]:
        return [
            random_box(UniformStream(key), image.shape[0], image.shape[1], config.crop_scale, config.crop_ratio)
            for key, image in enumerate(pixels)
        ]

    boxes = draw_boxes()

    def crop() -> list[torch.Tensor]:
        return [crop_and_resize(image, box, IMAGE_SIZE) for image, box in zip(pixels, boxes, strict=True)]

    views = crop()

    def fill_share() -> Share:
        share = Share.empty(samples, IMAGE_SIZE)
        for row, (view, sample) in enumerate(zip(views, parsed, strict=True)):
            share.put(row, view, sample.label, sample.key)
        return share

    shares, owners, mask_keys = [fill_share()], np.zeros_like(chosen), torch.zeros(samples, dtype=torch.int64)
    return {
        "read a block, cut it into samples": lambda: read_samples(index, chosen),
        "tar headers, checksums, label": lambda: [parse_sample(each) for each in raw],
        "decode the JPEG": lambda: [decode_rgb(sample.image) for sample in parsed],
        "draw the crop": draw_boxes,
        "crop, resize": crop,
        "fill a worker's share": fill_share,
        "assemble the micro-batch": lambda: assemble(shares, owners, mask_keys, pin_memory=False),
    }
