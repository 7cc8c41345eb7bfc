"""RandAugment and random erasing on a training view: timm's, with random numbers that the sample's key decides.

timm draws from the global generators of Python, NumPy and torch. They are set from the key for the time of one view
and put back, so that a view is the same in every worker, on every rank and after a resume.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing

from trainer.data.counter_rng import derive_key
from trainer.finetuning.recipe import AugmentationConfig

_TRANSLATION = 0.45  # of the image's side at most, as timm's training has it
_AFTER_CROP = 1  # the key itself is the crop's


@contextmanager
def global_generators(key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generator, seeded by a 64-bit key; outside of the context nothing changes."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    random.seed(key)
    np.random.seed([key >> 32, key & 0xFFFFFFFF])  # noqa: NPY002
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@dataclass(frozen=True)
class AfterCrop:
    """What follows crop and flip: uint8 [3, S, S] → uint8 [3, S, S]. The key decides everything random in it.

    Sent to the workers before its first use; each then makes timm's transforms for itself."""

    config: AugmentationConfig
    image_size: int

    def __call__(self, view: torch.Tensor, key: int) -> torch.Tensor:
        with global_generators(derive_key(key, _AFTER_CROP)):
            if self.config.rand_augment:
                image = self._rand_augment(Image.fromarray(view.permute(1, 2, 0).numpy()))
                view = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            if self.config.random_erasing:
                view = erase(view, self._erasing)
        return view

    @cached_property
    def _rand_augment(self) -> RandAugment:
        assert self.config.rand_augment is not None
        settings = {
            "translate_const": int(_TRANSLATION * self.image_size),
            "img_mean": tuple(round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN),
            "interpolation": Image.Resampling.BICUBIC,
        }
        augment = rand_augment_transform(self.config.rand_augment, settings)
        for op in augment.ops:
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
        return augment

    @cached_property
    def _erasing(self) -> RandomErasing:
        return RandomErasing(self.config.random_erasing, mode="pixel", max_count=1, device="cpu")


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """At the highest magnitude timm keeps no bit at all, which Pillow refuses today and made a black image of before:
    one is left."""
    return posterize(image, max(1, bits), **settings)


def erase(view: torch.Tensor, erasing: RandomErasing) -> torch.Tensor:
    """timm's noise is standard normal and meant for normalised pixels; here it is brought to uint8 and ends at black
    and white. Pixels outside of the rectangle stay as they are."""
    noise = erasing(torch.full(view.shape, torch.nan))
    erased = ~noise.isnan()
    if not erased.any():
        return view
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels = ((noise * std + mean) * 255).round().clamp(0, 255)
    return torch.where(erased, pixels.nan_to_num().to(torch.uint8), view)
