"""A tiny ViT for 32-pixel images, the same each time."""

import torch

from trainer.evaluation.encoder import Encoder
from trainer.model.config import ModelConfig
from trainer.pretrained import build_vit

CONFIG = ModelConfig(
    image_size=32,
    patch_size=8,
    embed_dim=32,
    depth=4,
    num_heads=2,
    stages=[0, 1, 2, 3],
    decoder_dim=32,
    decoder_heads=2,
)


def small_encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = build_vit(CONFIG, num_classes=0)
        for block in vit.blocks:  # as it begins, a ViT hardly mixes; this one does
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.2)
            torch.nn.init.normal_(block.mlp.fc2.weight, std=0.2)
        return Encoder(vit)
