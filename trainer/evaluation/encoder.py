"""A frozen ViT that turns uint8 images into one vector each."""

from contextlib import nullcontext
from typing import Literal, get_args

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from trainer.model.localmim import IMAGENET_MEAN, IMAGENET_STD

Pool = Literal["mean", "cls"]
"""What stands for an image: the mean of its patch tokens, or the class token, both after the final LayerNorm."""

POOLS: tuple[Pool, ...] = get_args(Pool)

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A VisionTransformer (`trainer.pretrained.build_vit` with num_classes=0) in evaluation mode, without gradients.

    ``precision``: bf16 and fp16 by autocast over fp32 weights; features come out in fp32 either way."""

    def __init__(self, vit: VisionTransformer, device: torch.device | str = "cpu", precision: Precision = "fp32"):
        """Raises ValueError for a ViT whose tokens do not go through its final norm, as with global_pool="avg"."""
        if isinstance(vit.norm, torch.nn.Identity):
            raise ValueError("the ViT has no norm before its pooling: build it with timm's global_pool='token'")
        self.device = torch.device(device)
        self.vit = vit.eval().requires_grad_(False).to(self.device)
        self.precision: Precision = precision
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

    @property
    def image_size(self) -> int:
        """Height and width of the images it takes."""
        return self.vit.patch_embed.img_size[0]

    @property
    def width(self) -> int:
        """Length of a feature vector, D."""
        return self.vit.num_features

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[Pool, Tensor]:
        """uint8 [B, 3, S, S] on any device → fp32 [B, D] on the encoder's, for each pool."""
        pixels = images.to(self.device, non_blocking=True).float().div_(255).sub_(self._mean).div_(self._std)
        with self._autocast():
            tokens = self.vit.forward_features(pixels).float()
        prefix = self.vit.num_prefix_tokens
        return {"mean": tokens[:, prefix:].mean(dim=1), "cls": tokens[:, 0]}

    def _autocast(self):
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])
