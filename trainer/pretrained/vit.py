"""timm's VisionTransformer around pre-trained weights, for everything that looks at whole images."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.pretrained.weights import Pretrained

HEAD_PARTS = ("head.", "fc_norm.")
"""What a fine-tuned classifier has behind its encoder; no pre-training makes it."""


def build_vit(config: ModelConfig, **timm_options: Any) -> VisionTransformer:
    """A newly initialised VisionTransformer with the encoder's shape: class token, positions for the configured image,
    biases on queries, keys and values, exact GELU.

    `timm_options` go to timm's class as they are: num_classes (1000 unless given, 0 for features), global_pool (token
    unless given), drop_path_rate, …
    """
    options = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.num_blocks,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
    }
    return VisionTransformer(**(options | timm_options))


@torch.no_grad()
def load_into(vit: VisionTransformer, pretrained: Pretrained) -> None:
    """Copy the encoder into a VisionTransformer, whole or not at all.

    The head, and the ``fc_norm`` that timm puts behind mean pooling in place of ``norm``, stay as they are; then the
    source's norm has no place and is left out. Raises `BadInput`, naming the weights, if anything else is missing on
    either side or has another shape."""
    places = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith(HEAD_PARTS)}
    weights = dict(pretrained.encoder)
    if isinstance(vit.norm, nn.Identity):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("norm.")}
    if unknown := sorted(places.keys() ^ weights.keys()):
        which = "are not in" if unknown[0] in places else "have no place for"
        raise BadInput(f"{pretrained.source}: another architecture: {unknown[0]} and {len(unknown) - 1} more {which}")
    for name, place in places.items():
        if place.shape != weights[name].shape:
            raise BadInput(
                f"{pretrained.source}: {name} has shape {list(weights[name].shape)}, {list(place.shape)} is needed: "
                "give weights of the same image size, patch size, width and depth"
            )
    for name, place in places.items():
        place.copy_(weights[name])
