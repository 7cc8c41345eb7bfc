"""Small models with weights that no two tensors share, and files of them under every project's names."""

import json
from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoint.tensors import write_by_hand
from trainer.finetuning.classifier import Classifier
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.model.config import EncoderConfig, ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.masking import random_masking

MODEL = ModelConfig(
    image_size=64,
    patch_size=16,
    embed_dim=32,
    depth=4,
    num_heads=2,
    stages=[0, 1, 2, 3],
    decoder_dim=32,
    decoder_heads=2,
)
SAMPLES = 150


def scrambled(config: ModelConfig, seed: int = 0) -> LocalMIM:
    """A model none of whose weights is as it began: a norm that is mistaken for another shows."""
    torch.manual_seed(seed)
    model = LocalMIM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def write_run(directory: Path, config: ModelConfig, step: int = 10) -> LocalMIM:
    """A run's checkpoint, by three ranks, with what the run knows of its data; returns the model in it."""
    model = scrambled(config, seed=step)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    recipe = {
        "model": config.model_dump(mode="json"),
        "data": {"path": "/home/somebody/images"},
        "train": {"epochs": 3, "global_batch": 30},
    }
    write_by_hand(directory / "checkpoints", step, weights, frozen_units=2, recipe=recipe)
    environment = {"shards": {"path": "/home/somebody/images", "samples": SAMPLES, "hash": "hash"}}
    (directory / "environment.json").write_text(json.dumps(environment))
    return model


def write_finetuned_run(directory: Path, classes: int) -> None:
    """The same of a fine-tuning, whose recipe has all keys; the number of classes stands in the head alone."""
    encoder = EncoderConfig(**MODEL.model_dump(include=EncoderConfig.model_fields.keys()))
    recipe = FinetuneRecipe(model=encoder).model_dump(mode="json")
    recipe["data"] |= {"path": "/home/somebody/images"}
    recipe["validation"] |= {"path": "/home/somebody/held_out"}
    recipe["finetune"] |= {"init": "/home/somebody/run"}
    torch.manual_seed(0)
    model = Classifier(encoder, FinetuneRecipe().finetune, classes)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_by_hand(directory / "checkpoints", 20, weights, recipe=recipe)


@torch.no_grad()
def unmasked_features(model: LocalMIM, pixels: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W] → tokens [B, 1 + L, D] of our own encoder, all patches shown in their order, after
    the norm of the last stage."""
    num_patches = model.config.num_patches
    in_order = torch.arange(num_patches, dtype=torch.float32).expand(len(pixels), -1)
    tokens = model._embed(pixels, random_masking(in_order, num_patches))
    for block in model.blocks:
        tokens = block(tokens)
    return model.stages[-1].norm(tokens)


def expected_encoder(model: LocalMIM) -> dict[str, Tensor]:
    """What every source of this model gives, under timm's names; written apart from the importer."""
    encoder = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("stages.")}
    return encoder | {
        "pos_embed": model.pos_embed,
        "norm.weight": model.stages[-1].norm.weight.detach(),
        "norm.bias": model.stages[-1].norm.bias.detach(),
    }


def mae_names(model: LocalMIM) -> dict[str, Tensor]:
    """The encoder as MAE names it, beside parts that have the names of MAE's decoder."""
    weights = dict(model.state_dict())
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("stages.")}
    encoder |= {"pos_embed": model.pos_embed}
    encoder |= {f"norm.{part}": weights[f"stages.{len(model.stages) - 1}.norm.{part}"] for part in ("weight", "bias")}
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_embed.weight": torch.ones(8, 32),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.bias": torch.ones(768),
    }
    return encoder | decoder
