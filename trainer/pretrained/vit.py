"""timm's VisionTransformer around pre-trained weights, for everything that looks at whole images."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from trainer.model.config import EncoderConfig
from trainer.pretrained.weights import Pretrained, require_weights

HEAD_PARTS = ("head.", "fc_norm.")
"""What stands behind the encoder in a classifier; no pre-training makes it."""


def build_vit(config: EncoderConfig, **timm_options: Any) -> VisionTransformer:
    """A newly initialised VisionTransformer of the encoder's shape: class token, learnable positions for the configured
    image, biases on queries, keys and values, exact GELU.

    `timm_options` go to timm's class as they are: num_classes (1000 unless given, 0 for features), global_pool (token
    unless given), drop_path_rate, …
    """
    return VisionTransformer(**(vit_options(config) | timm_options))


def vit_options(config: EncoderConfig) -> dict[str, Any]:
    """The encoder's shape in the words of timm's class."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.num_blocks,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
    }


@torch.no_grad()
def load_into(vit: VisionTransformer, pretrained: Pretrained) -> None:
    """Copy the encoder into a VisionTransformer, whole or not at all.

    Head and ``fc_norm`` stay as they are. Where timm puts ``fc_norm`` behind mean pooling in place of ``norm``, the
    source's norm, which was trained on single tokens, has no place and is left out. Raises `BadInput`, naming the
    weights, if anything else is missing on either side or has another shape."""
    places = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith(HEAD_PARTS)}
    weights = pretrained.encoder
    if isinstance(vit.norm, nn.Identity):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("norm.")}
    require_weights(weights, {name: place.shape for name, place in places.items()}, pretrained.source)
    for name, place in places.items():
        place.copy_(weights[name])
