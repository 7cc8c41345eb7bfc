"""What every source of pre-trained weights is brought to: an encoder under timm's names, and the whole where it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.config import ModelConfig
from trainer.model.positions import sincos_positions

ENCODER_PARTS = ("cls_token", "patch_embed.", "blocks.")
"""Beginnings of the encoder's names in LocalMIM; timm's VisionTransformer has the same, and pos_embed and norm."""


@dataclass(frozen=True)
class Pretrained:
    """Weights in fp32 on the host. ``encoder`` and ``full`` may share memory: copy before you write."""

    config: ModelConfig
    """Of the encoder; what it says of stages and decoders counts only where ``full`` is there."""

    encoder: dict[str, Tensor]
    """Under the names of timm's VisionTransformer: cls_token [1, 1, D], pos_embed [1, 1 + L, D], patch_embed.proj.*,
    blocks.I.*, and norm.*, the LayerNorm that reads the last block; 1 and 0 for a source that has none."""

    full: dict[str, Tensor] | None
    """Every parameter of `trainer.model.localmim.LocalMIM`, where the source has the decoders too."""

    source: str
    """For logs: ``runs/x, step 1234``."""


def from_localmim(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> Pretrained:
    """From all parameters of a `LocalMIM` of this configuration."""
    norm = f"stages.{len(config.stage_blocks) - 1}.norm."
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER_PARTS)}
    encoder["pos_embed"] = sincos_positions(config.grid_size, config.width)
    encoder |= {f"norm.{part}": weights[norm + part] for part in ("weight", "bias")}
    return Pretrained(config, encoder, dict(weights), source)


def unit_norm(width: int) -> dict[str, Tensor]:
    """A LayerNorm as it begins, for a source that has none after its last block."""
    return {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
