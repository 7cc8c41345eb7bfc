"""Makes RUN/pictures: from a checkpoint and the run's own shards, on the host, without touching the engine."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.manifest import list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.data.chosen import evenly_chosen
from trainer.data.evaluation import centre_view
from trainer.data.source import DataSource
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.plan import RunPlan
from trainer.tracking.pictures import draw_reconstructions, draw_timeline


def draw_reconstruction_picture(plan: RunPlan) -> Path:
    """reconstructions.png of the weights in the newest checkpoint.

    Frozen stages are shown too: a decoder froze with the block that it reads, so its predictions stay valid."""
    config = plan.recipe.model
    images = centre_crops(plan.index, plan.recipe.tracking.picture_images, config.image_size)
    model = LocalMIM(config)
    Checkpoint(list_checkpoints(plan.checkpoints)[0]).load_weights(model)
    noise = mask_noise(torch.arange(len(images)), model.num_patches)
    shown = model.reconstruct(images, noise)
    path = plan.output / "pictures" / "reconstructions.png"
    draw_reconstructions(images.numpy(), shown, config, path)
    return path


def draw_timeline_picture(plan: RunPlan, events: list[dict[str, Any]]) -> Path:
    path = plan.output / "pictures" / "freeze_timeline.png"
    draw_timeline(events, path)
    return path


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
