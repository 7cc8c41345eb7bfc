"""Run and step directories as pre-trained weights."""

from pathlib import Path

import torch

from tests.checkpoint.tensors import write_by_hand
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained import build_vit, load_into, load_pretrained

MODEL = ModelConfig(
    image_size=64, patch_size=16, embed_dim=16, depth=4, num_heads=2, stages=[0, 1, 2, 3], decoder_dim=16,
    decoder_heads=2,
)  # fmt: skip


def write_run(directory: Path, config: ModelConfig, step: int = 5) -> LocalMIM:
    torch.manual_seed(step)
    model = LocalMIM(config)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_by_hand(directory / "checkpoints", step, weights, recipe={"model": config.model_dump(mode="json")})
    return model


def test_a_run_gives_its_newest_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, MODEL, step=5)
    model = write_run(tmp_path, MODEL, step=10)
    pretrained = load_pretrained(tmp_path)
    assert pretrained.source == f"{tmp_path}, step 10"
    assert pretrained.full is not None
    assert pretrained.full.keys() == dict(model.named_parameters()).keys()
    vit = build_vit(MODEL, num_classes=0)
    load_into(vit, pretrained)
    assert torch.equal(vit.norm.weight, model.stages[-1].norm.weight)
    assert all(torch.equal(vit.get_parameter(f"blocks.{n}"), p) for n, p in model.blocks.named_parameters())
