"""The model card of an exported encoder: what it is, how it was trained, what is not known of it."""

import json
from dataclasses import dataclass
from typing import Any

import yaml

from trainer.pretrained.timm_model import timm_model
from trainer.pretrained.weights import Pretrained
from trainer.recipe import FINETUNE

CARD = "README.md"

_CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
{tags}
---

# {name}

A Vision Transformer ({width} wide, {depth} blocks, {heads} heads, patches of {patch} pixels, {parameters:.1f} M
parameters) without a classifier. {origin}

## Use

```python
import timm
import torch

model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # "hf-hub:USER/{name}" once it is uploaded
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(torch.randn(1, 3, {image}, {image}))  # [1, {width}]: the class token after the last LayerNorm
patches = model.forward_features(torch.randn(1, 3, {image}, {image}))  # [1, {tokens}, {width}]: class token, patches
```

Without this folder's config.json the same model is `{call}`. Images are normalised with
ImageNet's mean and standard deviation, as config.json says; timm's own weights of that name may expect others.

## Training

{training}

## Limits

- {labels}
- No accuracy is recorded here: measure it on your task.
- It knows images of {image} × {image} pixels; its positions belong to that size.
- Whatever is lopsided in its images is lopsided in its features, and who may use the weights depends on who may use
  those images. The licence is for the one who uploads them to state.
"""

_OF_A_RUN = """\
| | |
|---|---|
{rows}

The recipe, which `{command}` takes, without the places of images and weights:

```yaml
{recipe}
```"""


@dataclass(frozen=True)
class _Past:
    """What is known of where an encoder comes from. ``labels``: whether it has seen any. ``command``: what takes the
    recipe, where there is one."""

    origin: str
    labels: str
    tags: tuple[str, ...] = ("timm",)
    command: str = ""


_ELSEWHERE = _Past(
    origin="Converted from another project's checkpoint.",
    labels="Whether it has seen labels is not recorded in the checkpoint that this was converted from.",
)
_PRETRAINED = _Past(
    origin="Pre-trained without labels with LocalMIM ([arXiv 2303.05251](https://arxiv.org/abs/2303.05251)): "
    "intermediate blocks reconstruct local features of the image where patches are masked.",
    labels="The training below read no labels. Whether it started from other weights, which may have seen some, is not "
    "recorded here.",
    tags=("timm", "self-supervised", "masked-image-modeling"),
    command="launch/pretrain.py",
)
_FINETUNED = _Past(
    origin="The encoder of a classifier that was fine-tuned on labelled images; its head is left out.",
    labels="It has seen the labels of the images that it was fine-tuned on. What it started from is not recorded here.",
    command="launch/finetune.py",
)


def model_card(pretrained: Pretrained, name: str) -> str:
    """Markdown with the Hub's header. `name`: the folder's."""
    config = pretrained.config
    recipe = json.loads(pretrained.about.get("recipe", "null"))
    past = _ELSEWHERE if recipe is None else _FINETUNED if FINETUNE in recipe else _PRETRAINED
    return _CARD.format(
        name=name,
        width=config.width,
        depth=config.num_blocks,
        heads=config.heads,
        patch=config.patch_size,
        image=config.image_size,
        tokens=1 + config.num_patches,
        parameters=sum(tensor.numel() for tensor in pretrained.encoder.values()) / 1e6,
        call=timm_model(config, pretrained.source).call(),
        tags="\n".join(f"- {tag}" for tag in past.tags),
        origin=past.origin,
        labels=past.labels,
        training=_training(pretrained, recipe, past.command),
    )


def _training(pretrained: Pretrained, recipe: dict[str, Any] | None, command: str) -> str:
    if recipe is None:
        return "Not recorded in the checkpoint that this was converted from."
    rows = "\n".join(f"| {what} | {value} |" for what, value in _facts(pretrained, recipe).items())
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
    return _OF_A_RUN.format(rows=rows, command=command, recipe=text)


def _facts(pretrained: Pretrained, recipe: dict[str, Any]) -> dict[str, Any]:
    """What is known, in the order in which people ask."""
    about = pretrained.about
    steps, batch, images = about.get("step"), _global_batch(recipe), about.get("images")
    seen = {"steps": steps, "images in a step": batch, "images": images}
    if steps and batch and images and int(images):
        seen["passes over the images"] = f"{int(steps) * batch / int(images):.1f}"
    facts = seen | {
        "classes": about.get("classes"),
        "precision": about.get("precision") and f"{about['precision']}; the weights are its fp32 masters",
        "frozen by then": about.get("frozen_units")
        and f"{about['frozen_units']} of {pretrained.config.num_units} units (patch embedding, blocks)",
        "hash of the shards' index": about.get("shards"),
    }
    return {what: value for what, value in facts.items() if value}


def _global_batch(recipe: dict[str, Any]) -> int | None:
    train = recipe.get("train")
    batch = train.get("global_batch") if isinstance(train, dict) else None
    return batch if isinstance(batch, int) else None
