"""What every source of pre-trained weights is brought to: an encoder under timm's names, and the whole where it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.positions import sincos_positions

ENCODER_PARTS = ("cls_token", "patch_embed.", "blocks.")
"""Beginnings of the encoder's parameters in LocalMIM, where they have the names of timm's VisionTransformer."""

NUMBERS = ("step", "frozen_units", "images", "classes")
ABOUT = (*NUMBERS, "precision", "shards", "recipe")
"""Keys of `Pretrained.about`: optimizer steps, units frozen by then, images of an epoch, classes of a fine-tuned run's
head, precision of training, hash of the shards' index, the recipe as JSON."""


@dataclass(frozen=True)
class Pretrained:
    """Weights in fp32 on the host. ``encoder`` and ``full`` share memory: copy before you write."""

    config: ModelConfig
    """Of the encoder; what it says of stages and decoders counts only where ``full`` is there."""

    encoder: dict[str, Tensor]
    """Under the names of timm's VisionTransformer: cls_token [1, 1, D], pos_embed [1, 1 + L, D], patch_embed.proj.*,
    blocks.I.*, and norm.*, the LayerNorm that reads the last block; 1 and 0 for a source that has none."""

    full: dict[str, Tensor] | None
    """Every parameter of `trainer.model.localmim.LocalMIM`, where the source has the decoders too."""

    source: str
    """For logs: ``runs/x, step 1234``."""

    about: Mapping[str, str] = field(default_factory=dict)
    """What the source says of its training, as far as it does: values of `ABOUT`. Exports carry it on as metadata."""


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Every parameter of a `LocalMIM`. Takes no memory for the weights."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in LocalMIM(config).named_parameters()}


def encoder_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Every weight of `Pretrained.encoder`."""
    shapes = {name: shape for name, shape in parameter_shapes(config).items() if name.startswith(ENCODER_PARTS)}
    norm = torch.Size([config.width])
    return shapes | {
        "pos_embed": torch.Size([1, 1 + config.num_patches, config.width]),
        "norm.weight": norm,
        "norm.bias": norm,
    }


def from_localmim(
    config: ModelConfig, weights: Mapping[str, Tensor], source: str, about: Mapping[str, str]
) -> Pretrained:
    """From the parameters of a `LocalMIM` of this configuration. Raises `BadInput` unless they are exactly those."""
    require_weights(weights, parameter_shapes(config), source)
    return Pretrained(config, encoder_of_localmim(config, weights), dict(weights), source, about)


def encoder_of_localmim(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`Pretrained.encoder`, from the encoder's parameters of a `LocalMIM` and its last stage's norm; others are left
    out."""
    norm = last_norm(config)
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER_PARTS)}
    encoder["pos_embed"] = sincos_positions(config.grid_size, config.width)
    return encoder | {f"norm.{part}": weights[f"{norm}.{part}"] for part in ("weight", "bias")}


def last_norm(config: ModelConfig) -> str:
    """The module of `LocalMIM` that is the encoder's ``norm``: the LayerNorm of the stage that reads the last block."""
    return f"stages.{len(config.stage_blocks) - 1}.norm"


def require_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str) -> None:
    """Raises `BadInput`, naming them, unless there are weights of these names and shapes and no others."""
    refuse(source, "it lacks", shapes.keys() - weights.keys())
    refuse(source, "it holds weights that the model has no place for:", weights.keys() - shapes.keys())
    refuse(
        source,
        "its shapes do not fit its model:",
        {
            f"{name} {list(weights[name].shape)} instead of {list(shape)}"
            for name, shape in shapes.items()
            if weights[name].shape != shape
        },
    )


def refuse(source: str, problem: str, keys: set[str]) -> None:
    """Raises `BadInput` if there are any such keys."""
    if keys:
        shown = sorted(keys)[:8]
        more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        raise BadInput(f"{source}: {problem} {', '.join(shown)}{more}; give another checkpoint")
