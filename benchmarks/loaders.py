"""Five ways from the same photographs to training batches, each set up as its own project does it.

All crop 20 to 100 % of the area, resize to 224 x 224 bicubically, and give endless batches of one size. Shuffle buffers
of the tar readers are kept small, so that they are full before anything is timed; that favours them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import webdataset as wds
from open_clip import transform as open_clip_transform
from timm.data import create_dataset, create_transform
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from benchmarks.corpus import Corpus
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader

IMAGE_SIZE = 224
CROP_SCALE = (0.2, 1.0)
PREFETCH = 2  # batches that a worker prepares ahead, in all of them
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ENDLESS = 10**9
_SHUFFLE = {"bufsize": 256, "initial": 64}

Batches = Iterator[torch.Tensor]


@dataclass(frozen=True)
class LoaderContender:
    """`batches(corpus, workers, batch)` gives images [batch, 3, 224, 224] for ever; `gives` describes them."""

    name: str
    gives: str
    batches: Callable[[Corpus, int, int], Batches]


def image_folder(corpus: Corpus, workers: int, batch: int) -> Batches:
    """torchvision's ImageFolder with the transform of MAE's pre-training (arXiv 2111.06377), which LocalMIM shares."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                IMAGE_SIZE, scale=CROP_SCALE, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )
    dataset = datasets.ImageFolder(str(corpus.folder), transform)
    sampler = RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    return _images(DataLoader(dataset, batch, sampler=sampler, **_worker_options(workers)))


def timm_wds(corpus: Corpus, workers: int, batch: int) -> Batches:
    """timm's `wds/` reader with its training transform and the uint8 batches that its device prefetcher takes."""
    dataset = create_dataset(
        "wds/",
        root=str(corpus.shards),
        split="train",
        is_training=True,
        batch_size=batch,
        num_samples=_ENDLESS,
        sample_shuffle_size=_SHUFFLE["bufsize"],
        sample_initial_size=_SHUFFLE["initial"],
    )
    dataset.transform = create_transform(
        IMAGE_SIZE,
        is_training=True,
        use_prefetcher=True,
        scale=CROP_SCALE,
        color_jitter=0.0,
        interpolation="bicubic",
    )
    dataset.set_loader_cfg(num_workers=workers)
    return _images(DataLoader(dataset, batch, collate_fn=fast_collate, **_worker_options(workers)))


def open_clip(corpus: Corpus, workers: int, batch: int) -> Batches:
    """The stages of open_clip's training pipeline in its order, less the captions that our shards do not have.

    They are webdataset's own; `open_clip_train.data` only rewrites two of them to log errors and to share an epoch
    counter, and needs pandas to be imported."""
    transform = open_clip_transform.image_transform(
        IMAGE_SIZE, is_train=True, aug_cfg=open_clip_transform.AugmentationCfg(scale=CROP_SCALE)
    )
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(corpus.shard_files),
        wds.detshuffle(bufsize=2000, initial=500),
        wds.split_by_worker,
        wds.tarfile_to_samples(),
        wds.shuffle(**_SHUFFLE),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp"),
        wds.map_dict(image=transform),
        wds.to_tuple("image"),
        wds.batched(batch, partial=False),
    ).with_epoch(_ENDLESS)
    return _images(wds.WebLoader(pipeline, batch_size=None, shuffle=False, **_worker_options(workers)))


def lanes(corpus: Corpus, workers: int, batch: int) -> Batches:
    """This project's loader."""
    config = DataConfig(workers=workers, prefetch=PREFETCH, crop_scale=CROP_SCALE, lanes=4, window=16)
    loader = LaneLoader(
        corpus.index,
        config,
        image_size=IMAGE_SIZE,
        seed=random.randrange(2**32),
        global_batch=batch,
        micro_batch=batch,
        rank=0,
        world_size=1,
        end_step=_ENDLESS,
    )
    return (micro_batch.images for micro_batch in loader)


def lanes_normalised(corpus: Corpus, workers: int, batch: int) -> Batches:
    """The same with the device's work done as well, on the CPU and in the consuming process: what ImageFolder gives."""
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (_MEAN, _STD))
    return (images.float().sub_(mean).div_(std) for images in lanes(corpus, workers, batch))


CONTENDERS = (
    LoaderContender("PIL + torchvision ImageFolder (MAE, LocalMIM)", "float32, normalised", image_folder),
    LoaderContender("timm `wds` reader", "uint8", timm_wds),
    LoaderContender("open_clip pipeline (no flip)", "float32, normalised", open_clip),
    LoaderContender("LaneLoader", "uint8", lanes),
    LoaderContender("LaneLoader, then normalised on the CPU", "float32, normalised", lanes_normalised),
)
BASELINE = CONTENDERS[0].name


def _worker_options(workers: int) -> dict[str, Any]:
    return {"num_workers": workers, "prefetch_factor": PREFETCH, "persistent_workers": True} if workers else {}


def _images(loader: DataLoader) -> Batches:
    for images, *_ in loader:
        yield images
