"""Which of timm's models an encoder is: what another program must ask timm for."""

import json
from dataclasses import dataclass
from typing import Any

from timm import is_model

from trainer.errors import BadInput
from trainer.model.config import VIT_SIZES, ModelConfig, VitSize
from trainer.model.localmim import IMAGENET_MEAN, IMAGENET_STD

TIMM_NORM_EPS = 1e-6
"""Epsilon of the LayerNorms of all of timm's plain ViTs; no argument that a file could carry changes it."""


@dataclass(frozen=True)
class TimmModel:
    """A registered name, and what must be given besides: nothing, for a standard ViT."""

    name: str
    arguments: dict[str, Any]

    def call(self, *more: str) -> str:
        """Python that makes the encoder, for people; `more`: arguments as they are written."""
        arguments = [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"timm.create_model({', '.join([repr(self.name), 'num_classes=0', *arguments, *more])})"


def timm_model(config: ModelConfig, source: str) -> TimmModel:
    """The model of timm that computes what the encoder computes. Raises `BadInput` if timm has none."""
    if config.norm_eps != TIMM_NORM_EPS:
        raise BadInput(
            f"{source}: its model.norm_eps is {config.norm_eps:g}, and timm's ViTs have {TIMM_NORM_EPS:g}, with which "
            "its features would be others; take --format fp32 or full"
        )
    own = VitSize(config.width, config.num_blocks, config.heads)
    size, standard = next((found for found in VIT_SIZES.items() if found[1] == own), ("base", VIT_SIZES["base"]))
    patch_size, image_size = config.patch_size, config.image_size
    if not is_model(_name(size, patch_size, image_size)):
        patch_size, image_size = 14 if size == "huge" else 16, 224  # which all sizes have
    name = _name(size, patch_size, image_size)
    needed = {
        "img_size": (config.image_size, image_size),
        "patch_size": (config.patch_size, patch_size),
        "embed_dim": (config.width, standard.width),
        "depth": (config.num_blocks, standard.depth),
        "num_heads": (config.heads, standard.heads),
        "mlp_ratio": (config.mlp_ratio, 4.0),
    }
    return TimmModel(name, {key: ours for key, (ours, theirs) in needed.items() if ours != theirs})


def _name(size: str, patch_size: int, image_size: int) -> str:
    return f"vit_{size}_patch{patch_size}_{image_size}"


def timm_config(config: ModelConfig, source: str) -> dict[str, Any]:
    """config.json of a Hugging Face folder, as timm writes and reads it. Raises `BadInput` as `timm_model` does."""
    model = timm_model(config, source)
    return {
        "architecture": model.name,
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": {**model.arguments, "num_classes": 0},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def timm_metadata(config: ModelConfig, source: str) -> dict[str, str]:
    """The same for the metadata of a single file, whose values are strings."""
    model = timm_model(config, source)
    return {
        "architecture": model.name,
        "model_args": json.dumps(model.arguments),
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
    }
