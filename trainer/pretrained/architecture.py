"""What model weights are of, from their shapes: checkpoints of other projects do not say.

What leaves no trace in any shape, the number of attention heads and the blocks that stages read, must be known from a
model that is alike: a standard ViT, or the one that the weights are for.
"""

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from trainer.errors import BadInput
from trainer.model.config import VIT_SIZES, ModelConfig
from trainer.pretrained.localmim_names import HEAD_LAYERS, PUBLISHED

STANDARD = [ModelConfig(size=size) for size in VIT_SIZES]
"""The models that others publish: a ViT of standard size, with LocalMIM's stages and decoders."""


def encoder_config(weights: Mapping[str, Tensor], known: Sequence[ModelConfig], source: str) -> ModelConfig:
    """The encoder with timm's names among `weights`; of its one stage, on the last block, nothing is meant.

    `known`: models that it may be, the likeliest first. Raises `BadInput` if it is no ViT, or like none of them."""
    try:
        width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
        grid_size = isqrt(weights["pos_embed"].shape[1] - 1)
        mlp_width = len(weights["blocks.0.mlp.fc1.bias"])
    except (KeyError, ValueError, IndexError, TypeError):
        raise BadInput(
            f"{source}: unknown architecture: it has no patch_embed.proj, pos_embed and blocks like a ViT of timm, MAE "
            "or LocalMIM; give another checkpoint"
        ) from None
    depth = _number_of(r"blocks\.(\d{1,4})\..+", weights)
    alike = next((config for config in known if (config.width, config.num_blocks) == (width, depth)), None)
    if alike is None:
        raise BadInput(
            f"{source}: unknown architecture: no standard ViT is {width} wide and {depth} blocks deep, and weights "
            "alone do not say how many attention heads they have; give a checkpoint or an export of this program"
        )
    of_alike = alike.model_dump(include={"size", "embed_dim", "depth", "num_heads", "norm_eps"})
    of_shapes = {
        "image_size": grid_size * patch_size,
        "patch_size": patch_size,
        "mlp_ratio": _ratio(mlp_width, width, alike.mlp_ratio),
    }
    return _config({**of_alike, **of_shapes, "stages": [depth - 1], "scales": [1.0]}, source)


def localmim_config(weights: Mapping[str, Tensor], known: Sequence[ModelConfig], source: str) -> ModelConfig:
    """The model whose weights have the names that LocalMIM published. As `encoder_config`, decoders included."""
    encoder = encoder_config(weights, known, source)
    scales = [_scale(weights, stage, source) for stage in range(_number_of(PUBLISHED, weights))]
    try:
        decoder_dim = len(weights["decoder.0.embed.bias"])
        mlp_width = len(weights["decoder.0.blocks.0.mlp.fc1.bias"])
        channels = len(weights[f"decoder.0.pred.{HEAD_LAYERS[scales[0]][-1]}.bias"])
    except KeyError as error:
        raise BadInput(f"{source}: it lacks {error.args[0]}; give another checkpoint") from None
    shape = (encoder.width, encoder.num_blocks, decoder_dim, len(scales))
    alike = next((config for config in known if _decoded_shape(config) == shape), None)
    if alike is None:
        raise BadInput(
            f"{source}: unknown architecture: LocalMIM has no {len(scales)} decoders of width {decoder_dim}, and "
            "weights alone do not say which blocks they read, with how many heads; give a checkpoint or an export of "
            "this program"
        )
    of_encoder = encoder.model_dump(include={"image_size", "patch_size", "mlp_ratio"})
    of_decoders = {
        "scales": scales,
        "hog_bins": channels // 3,
        "decoder_depth": _number_of(r"decoder\.0\.blocks\.(\d{1,4})\..+", weights),
        "decoder_mlp_ratio": _ratio(mlp_width, decoder_dim, alike.decoder_mlp_ratio),
    }
    return _config({**alike.model_dump(), **of_encoder, **of_decoders}, source)


def _decoded_shape(config: ModelConfig) -> tuple[int, int, int, int]:
    return config.width, config.num_blocks, config.decoder_dim, len(config.stage_blocks)


def _ratio(mlp_width: int, width: int, likely: float) -> float:
    """Of several ratios that are cut to the same whole number of channels, the likely one."""
    return likely if int(width * likely) == mlp_width else mlp_width / width


def _number_of(pattern: str | re.Pattern[str], weights: Mapping[str, Tensor]) -> int:
    """One more than the highest number that names have where the pattern has its group; there is one such name."""
    return 1 + max(int(found[1]) for found in (re.fullmatch(pattern, name) for name in weights) if found)


def _scale(weights: Mapping[str, Tensor], stage: int, source: str) -> float:
    head = re.compile(rf"decoder\.{stage}\.pred\.(\d{{1,4}})\.weight")
    layers = tuple(sorted(int(found[1]) for found in map(head.fullmatch, weights) if found))
    for scale, having in HEAD_LAYERS.items():
        if having == layers:
            return scale
    raise BadInput(
        f"{source}: decoder.{stage}.pred has weights in its layers {list(layers)}, as no decoder of LocalMIM has; give "
        "another checkpoint"
    )


def _config(values: dict[str, Any], source: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadInput(f"{source}: unknown architecture: {why}; give another checkpoint") from None
