"""Whose names a set of weights has, and what they are in our own terms."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor, ones, zeros

from trainer.errors import BadInput
from trainer.model.config import EncoderConfig, ModelConfig
from trainer.pretrained.architecture import STANDARD, encoder_config, localmim_config
from trainer.pretrained.localmim_names import PUBLISHED, from_published
from trainer.pretrained.weights import ABOUT, NUMBERS, Pretrained, encoder_shapes, from_localmim, require_weights
from trainer.recipe import FINETUNE

_OURS = re.compile(r"stages\.\d+\..+")
_NOT_OF_THE_ENCODER = ("decoder_", "mask_token", "head.", "fc_norm.")
"""What MAE has beside its encoder, and what a classifier of timm has behind it."""

_PLACES = {
    "data": ("path", "cache", "cache_size"),
    "evaluation": ("path",),
    "validation": ("path",),
    FINETUNE: ("init",),
}
"""Keys of a recipe that say where images and weights lie: weights are handed on, and that is nobody's business. The
cache's size goes with its folder, without which no recipe is read."""


def recognise(
    weights: Mapping[str, Tensor], about: Mapping[str, str], source: str, like: ModelConfig | None = None
) -> Pretrained:
    """Weights under our names, those that LocalMIM published, MAE's or those of timm's VisionTransformer.

    `about`: see `Pretrained`. `like`: the model that they are for, asked last for what they do not say themselves.
    Raises `BadInput` if they are none of these, or not whole."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    about = {name: text for name, text in about.items() if name in ABOUT and (text.isdecimal() or name not in NUMBERS)}
    recorded = None
    if "recipe" in about:
        recipe = _recipe(about["recipe"], source)
        recorded = _model(recipe, source)
        about["recipe"] = json.dumps(recipe)
        if FINETUNE in recipe and "head.bias" in weights:
            about["classes"] = str(weights["head.bias"].numel())
    known = [config for config in (recorded, *STANDARD, like) if config is not None]
    if any(map(_OURS.fullmatch, weights)):
        return from_localmim(recorded or _required(like, source), weights, source, about)
    if any(map(PUBLISHED.fullmatch, weights)):
        config = recorded or localmim_config(weights, known, source)
        return from_localmim(config, from_published(config, weights, source), source, about)
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(_NOT_OF_THE_ENCODER)}
    config = encoder_config(encoder, known, source)
    if not encoder.keys() & {"norm.weight", "norm.bias"}:  # mean-pooled classifiers have none there
        encoder |= {"norm.weight": ones(config.width), "norm.bias": zeros(config.width)}
    require_weights(encoder, encoder_shapes(config), source)
    return Pretrained(config, encoder, None, source, about)


def _recipe(text: str, source: str) -> dict[str, Any]:
    """The recipe that is written down beside the weights, without its `_PLACES`. Raises `BadInput`."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise BadInput(f"{source}: the recipe in its metadata is not what this program writes; give another checkpoint")
    for section, places in _PLACES.items():
        if isinstance(recipe.get(section), dict):
            recipe[section] |= {key: None for key in places if key in recipe[section]}
    return recipe


def _model(recipe: dict[str, Any], source: str) -> ModelConfig:
    """The recipe's model; other sections may be of other times. Raises `BadInput`."""
    try:
        model = recipe.get("model", {})
        return ModelConfig.around(EncoderConfig(**model)) if FINETUNE in recipe else ModelConfig.model_validate(model)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise BadInput(f"{source}: its recipe's {key}: {first['msg']}; use the program that wrote it") from None


def _required(like: ModelConfig | None, source: str) -> ModelConfig:
    if like is None:
        raise BadInput(
            f"{source}: it has this program's names but not its recipe, which says what model it is; export it again "
            "with launch/export.py"
        )
    return like
