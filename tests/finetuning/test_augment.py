"""RandAugment, erasing and mixing: timm's, and all that is random in them decided by the key."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup

from tests.finetuning.small import OFF
from trainer.data.config import DataConfig
from trainer.data.loader import LaneLoader
from trainer.data.shard_index import ShardIndex
from trainer.finetuning.augment import AfterCrop, global_generators
from trainer.finetuning.mixing import Mixing, normalised
from trainer.finetuning.recipe import AugmentationConfig

PHOTOGRAPH = torch.arange(3 * 48 * 48).remainder(251).to(torch.uint8).view(3, 48, 48)


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002 (what timm draws from)


def test_the_global_generators_are_put_back_also_after_an_error() -> None:
    with global_generators(7):
        seeded = draws()
    with global_generators(5):
        before = draws()
        with pytest.raises(AssertionError), global_generators(7):
            assert draws() != seeded
        after = draws()
    with global_generators(5):
        assert [draws(), draws()] == [before, after]


def test_the_key_decides_the_view() -> None:
    view = AfterCrop(AugmentationConfig(), 48)
    views = [view(PHOTOGRAPH.clone(), key) for key in range(12)]
    assert all(v.dtype == torch.uint8 and v.shape == PHOTOGRAPH.shape for v in views)
    random.random(), torch.rand(3)
    assert all(torch.equal(AfterCrop(AugmentationConfig(), 48)(PHOTOGRAPH.clone(), k), v) for k, v in enumerate(views))
    assert len({v.numpy().tobytes() for v in views}) > 9
    assert any(not torch.equal(v, PHOTOGRAPH) for v in views)


def test_the_highest_magnitude_leaves_something_to_see() -> None:
    """Of eight bits timm's posterize would keep none."""
    view = AfterCrop(AugmentationConfig(rand_augment="rand-m10-inc1", random_erasing=0), 48)
    assert all(view(PHOTOGRAPH.clone(), key).any() for key in range(100))


def test_erasing_fills_one_rectangle_with_noise_in_a_quarter_of_the_images() -> None:
    erased = []
    for key in range(400):
        view = AfterCrop(AugmentationConfig(rand_augment=None), 48)(PHOTOGRAPH, key)
        rows, columns = (view != PHOTOGRAPH).any(0).nonzero(as_tuple=True)
        if len(rows):
            height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
            assert len(rows) > 0.9 * height * width, "a rectangle, but for noise that hits the pixel's own value"
            erased.append(height * width / 48**2)
    assert 70 < len(erased) < 130
    assert min(erased) > 0.01
    assert max(erased) < 0.36
    assert torch.equal(AfterCrop(AugmentationConfig(**OFF), 48)(PHOTOGRAPH, 3), PHOTOGRAPH)


def global_batch(split: Path, workers: int, world_size: int) -> dict[str, bytes]:
    """Key → pixels of the samples of step 2, over all ranks."""
    found = {}
    for rank in range(world_size):
        loader = LaneLoader(
            ShardIndex.open(split), DataConfig(workers=workers, window=4, lanes=4), image_size=32, seed=3,
            global_batch=16, micro_batch=4, rank=rank, world_size=world_size, start_step=2, end_step=3,
            after_crop=AfterCrop(AugmentationConfig(random_erasing=0.5), 32),
        )  # fmt: skip
        for batch in loader:
            found |= dict(zip(batch.keys, (image.numpy().tobytes() for image in batch.images), strict=True))
    return found


@pytest.mark.slow
def test_every_number_of_workers_and_ranks_makes_the_same_views(split: Path) -> None:
    views = global_batch(split, workers=0, world_size=1)
    assert len(views) == 16
    assert global_batch(split, workers=2, world_size=1) == views
    assert global_batch(split, workers=0, world_size=2) == views


@pytest.mark.parametrize("changes", [{"cutmix": 0}, {"mixup": 0}, {}, {"mix_probability": 0.5}])
def test_mixing_is_timms_with_shares_from_the_key(changes: dict[str, Any]) -> None:
    config = AugmentationConfig(**changes)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 4])
    mixing = Mixing(config, 5)
    for key in range(6):
        mixed, targets = mixing(images.clone(), labels, key)
        again = mixing(images.clone(), labels, key)
        with global_generators(key):
            timms = Mixup(config.mixup, config.cutmix, None, config.mix_probability, 0.5, label_smoothing=0.1,
                          num_classes=5)(images.clone(), labels)  # fmt: skip
        for ours in (again, timms):
            assert torch.equal(mixed, ours[0])
            assert torch.equal(targets, ours[1])
        assert torch.allclose(targets.sum(1), torch.ones(4))
    assert len({mixing(images.clone(), labels, key)[0].numpy().tobytes() for key in range(6)}) > 1


def test_without_mixing_only_the_labels_are_smoothed() -> None:
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([1, 0, 3])
    same, targets = Mixing(AugmentationConfig(mixup=0, cutmix=0), 4)(images, labels, 1)
    assert same is images
    assert torch.allclose(targets, torch.eye(4)[labels] * 0.9 + 0.1 / 4)


def test_pixels_are_normalised_as_imagenets() -> None:
    found = normalised(torch.tensor([0, 255, 124], dtype=torch.uint8).view(1, 3, 1, 1))
    assert found.flatten().tolist() == pytest.approx([-0.485 / 0.229, (1 - 0.456) / 0.224, (124 / 255 - 0.406) / 0.225])
