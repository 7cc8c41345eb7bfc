"""From a micro-batch of the loader to what the classifier is trained on: normalised, mixed images and soft targets."""

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from trainer.finetuning.augment import global_generators
from trainer.finetuning.recipe import AugmentationConfig


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, S, S] → fp32, with ImageNet's mean and standard deviation per channel."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (images.float() / 255 - mean) / std


class Mixing:
    """mixup or cutmix of image i with image B-1-i of a micro-batch, by timm, and label smoothing."""

    def __init__(self, config: AugmentationConfig, classes: int):
        self._classes, self._smoothing = classes, config.label_smoothing
        self._mixup = None
        if config.mixes:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_probability,
                switch_prob=config.cutmix_share,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )

    def __call__(self, images: Tensor, labels: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """fp32 images [B, 3, S, S], which may be overwritten, and labels int64 [B] → images and fp32 targets
        [B, classes]. The key decides share and rectangle."""
        if self._mixup is None:
            return images, mixup_target(labels, self._classes, lam=1.0, smoothing=self._smoothing)
        with global_generators(key):
            return self._mixup(images, labels)
