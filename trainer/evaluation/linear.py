"""Linear probe, two ways: on features of centre crops, computed once, or on augmented training views, as published.

The cached way costs one pass over the data and gives a figure that is lower by what augmentation is worth; it serves
small studies. For a figure to compare with others' use the augmented one.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.device_feed import on_device
from trainer.errors import BadInput
from trainer.evaluation.collectives import rank_and_world_size
from trainer.evaluation.encoder import Encoder, Pool
from trainer.evaluation.features import Features
from trainer.evaluation.probe import Probe, ProbeAccuracy, ProbeSettings

CROP_SCALE = (0.08, 1.0)  # of MAE's linear probe: torchvision's default
Told = Callable[[int], None]


def probe_cached(
    train: Features, held_out: Features, settings: ProbeSettings, *, progress: Told = lambda done: None
) -> list[ProbeAccuracy]:
    """Train on features that every rank holds, in an order that the seed alone decides, and count the held-out hits.
    Collective.

    The result is the same on any number of ranks up to rounding: they add up gradients in another order.
    progress: told after every step how many are done (`num_steps` in all).

    Raises BadInput if the ranks do not divide the global batch or the samples are fewer than that."""
    num_classes = max(train.num_classes, held_out.num_classes)
    some = next(iter(train.by_pool.values()))
    probe = _probe(some.shape[1], num_classes, settings, len(train.labels), some.device)
    for step, rows in enumerate(_shuffled_shares(len(train.labels), settings, some.device)):
        probe.train_step({pool: train.by_pool[pool][rows] for pool in settings.pools}, train.labels[rows])
        progress(step + 1)
    return probe.accuracies(held_out.by_pool, held_out.labels)


def probe_augmented(
    encoder: Encoder,
    train: ShardIndex,
    held_out: Features,
    settings: ProbeSettings,
    *,
    num_classes: int,
    batch: int,
    workers: int = 4,
    progress: Told = lambda done: None,
) -> list[ProbeAccuracy]:
    """Train on random resized crops and flips of the training images, each through the encoder, and count the hits of
    held-out features. Collective.

    Crops and their order are those of `LaneLoader`, so the result is the same on any number of ranks and workers up to
    rounding. batch: images per forward of a rank, at most; the classifiers and BatchNorm see the whole global batch.

    Raises BadInput as `probe_cached` does and for a label outside the classes, ShardError for damaged samples."""
    rank, world_size = rank_and_world_size()
    probe = _probe(encoder.width, num_classes, settings, train.num_samples, encoder.device)
    share = settings.global_batch // world_size
    micro_batch = max(size for size in range(1, min(batch, share) + 1) if share % size == 0)
    steps = num_steps(train.num_samples, settings)
    loader = LaneLoader(
        train, DataConfig(workers=workers, crop_scale=CROP_SCALE), image_size=encoder.image_size, seed=settings.seed,
        global_batch=settings.global_batch, micro_batch=micro_batch, rank=rank, world_size=world_size, end_step=steps,
        pin_memory=encoder.device.type != "cpu",
    )  # fmt: skip
    with on_device(loader, encoder.device) as micro_batches:
        for step in range(steps):
            features: dict[Pool, list[Tensor]] = {pool: [] for pool in settings.pools}
            labels = []
            for _ in range(share // micro_batch):
                read = next(micro_batches)
                _require_classes(read.labels, read.keys, num_classes)
                pooled = encoder(read.images)
                for pool, rows in features.items():
                    rows.append(pooled[pool])
                labels.append(read.labels)
            whole = {pool: torch.cat(rows) for pool, rows in features.items()}
            probe.train_step(whole, torch.cat(labels).to(encoder.device))
            progress(step + 1)
    return probe.accuracies(held_out.by_pool, held_out.labels)


def num_steps(num_samples: int, settings: ProbeSettings) -> int:
    """Updates of a probe; the last incomplete global batch of an epoch is left out."""
    return max(1, round(settings.epochs * (num_samples // settings.global_batch)))


def require_whole_batches(num_samples: int, settings: ProbeSettings) -> None:
    """Raises BadInput if the ranks do not divide the global batch or the samples are fewer than that."""
    _, world_size = rank_and_world_size()
    if settings.global_batch % world_size:
        raise BadInput(f"{world_size} ranks do not divide the probe's global batch of {settings.global_batch}")
    if settings.global_batch > num_samples:
        raise BadInput(
            f"the probe's global batch of {settings.global_batch} is more than the {num_samples} training samples: "
            "choose a smaller one"
        )


def _probe(width: int, num_classes: int, settings: ProbeSettings, num_samples: int, device: torch.device) -> Probe:
    require_whole_batches(num_samples, settings)
    return Probe(
        width,
        num_classes,
        settings,
        total_steps=num_steps(num_samples, settings),
        warmup_steps=round(settings.warmup_epochs * (num_samples // settings.global_batch)),
        device=device,
    )


def _shuffled_shares(num_samples: int, settings: ProbeSettings, device: torch.device) -> Iterator[Tensor]:
    """This rank's rows of each step: every sample once an epoch, but for an incomplete last batch."""
    rank, world_size = rank_and_world_size()
    steps_per_epoch = num_samples // settings.global_batch
    order = torch.empty(0)
    for step in range(num_steps(num_samples, settings)):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0:
            seeded = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
            order = torch.randperm(num_samples, generator=seeded).to(device)
        first = place * settings.global_batch
        yield order[first + rank : first + settings.global_batch : world_size]


def _require_classes(labels: Tensor, keys: list[str], num_classes: int) -> None:
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()[:, 0]
    if len(outside):
        row = int(outside[0])
        raise BadInput(
            f"sample {keys[row]} has class {int(labels[row])} where there are {num_classes}: give labelled shards, and "
            "the number of classes that they have"
        )
