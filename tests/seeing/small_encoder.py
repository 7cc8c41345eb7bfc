"""A small random LocalMIM as pre-trained weights, and photographs of its size."""

import numpy as np
import torch
from torch import Tensor

from tests.photographs import photographs
from trainer.data.evaluation import centre_crop
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained import Pretrained
from trainer.pretrained.weights import from_localmim

CONFIG = ModelConfig(
    image_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=4, stages=[1, 3], scales=[2, 1], decoder_dim=16,
    decoder_heads=2,
)  # fmt: skip


def small_pretrained() -> Pretrained:
    """Its first three units, and so its first stage, are frozen."""
    torch.manual_seed(0)
    weights = {name: parameter.detach() for name, parameter in LocalMIM(CONFIG).named_parameters()}
    return from_localmim(CONFIG, weights, "runs/small, step 7", {"frozen_units": "3"})


def small_images(count: int) -> Tensor:
    """uint8 [count, 3, 64, 64]."""
    chosen = list(photographs().values())[:count]
    return torch.stack([centre_crop(np.array(each), CONFIG.image_size) for each in chosen])
