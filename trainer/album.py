"""Makes RUN/pictures: from a checkpoint and the run's own shards, on the host, without touching the engine."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.reader import Checkpoint
from trainer.data.chosen import evenly_chosen
from trainer.data.evaluation import centre_view
from trainer.data.source import DataSource
from trainer.plan import RunPlan
from trainer.pretrained.weights import from_localmim


def draw_views(plan: RunPlan, checkpoint: Path, folder: Path) -> Iterator[Path]:
    """What the weights of a checkpoint make of a few of the run's photographs: each picture once it is drawn."""
    from trainer.seeing.draw import draw_pictures  # with matplotlib, a second that no start need wait for

    config = plan.recipe.model
    folder.mkdir(parents=True, exist_ok=True)
    images = centre_crops(plan.index, plan.recipe.tracking.picture_images, config.image_size)
    opened = Checkpoint(checkpoint)
    manifest = opened.manifest
    about = {"frozen_units": str(manifest.frozen_units)}
    pretrained = from_localmim(config, opened.weights(), f"{plan.output.name}, step {manifest.step}", about)
    yield from draw_pictures(pretrained, images, folder)


def draw_timeline_picture(plan: RunPlan, events: list[dict[str, Any]]) -> Iterator[Path]:
    from trainer.tracking.pictures import draw_timeline

    path = plan.output / "pictures" / "freeze_timeline.png"
    draw_timeline(events, path)
    yield path


def centre_crops(source: DataSource, count: int, size: int) -> torch.Tensor:
    """A few samples, always the same: uint8 [at most count, 3, size, size].

    From candidates all over the shards (of a pipe: its first), different classes first, and within them those with the
    most bytes: a flat sky compresses well and shows nothing."""
    samples = evenly_chosen(source, 8 * count)
    samples.sort(key=lambda sample: len(sample.image), reverse=True)
    seen: Counter[int] = Counter()
    turn = []
    for sample in samples:
        turn.append(seen[sample.label])
        seen[sample.label] += 1
    chosen = sorted(range(len(samples)), key=turn.__getitem__)[:count]
    return torch.stack([centre_view(samples[i], size) for i in chosen])
