"""The call that an export names builds the encoder: same names, same shapes, same heads."""

import pytest
import timm
import torch

from tests.pretrained.models import MODEL
from trainer.model.config import VIT_SIZES, ModelConfig
from trainer.pretrained import build_vit
from trainer.pretrained.timm_model import timm_model


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_standard_sizes_need_no_arguments(size: str) -> None:
    assert timm_model(ModelConfig(size=size), "x").call() == (
        f"timm.create_model('vit_{size}_patch16_224', num_classes=0)"
    )


def test_a_standard_shape_that_is_spelt_out_gets_its_name() -> None:
    config = ModelConfig(size="base", embed_dim=384, num_heads=6)
    assert timm_model(config, "x").name == "vit_small_patch16_224"
    assert timm_model(config, "x").arguments == {}


CONFIGS = {
    **{size: ModelConfig(size=size) for size in VIT_SIZES},
    "patches of 32, images of 384": ModelConfig(size="small", patch_size=32, image_size=384),
    "other heads": ModelConfig(size="small", num_heads=8),
    "other images": ModelConfig(size="tiny", image_size=96),
    "a model of the tests": MODEL,
    "everything": ModelConfig(
        size="tiny",
        image_size=64,
        patch_size=8,
        embed_dim=48,
        depth=5,
        num_heads=4,
        mlp_ratio=3.0,
        stages=[4],
        scales=[1],
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_call_builds_the_encoder(case: str) -> None:
    config = CONFIGS[case]
    model = timm_model(config, "x")
    with torch.device("meta"):
        theirs = timm.create_model(model.name, num_classes=0, **model.arguments)
        ours = build_vit(config, num_classes=0)
    assert {n: t.shape for n, t in theirs.state_dict().items()} == {n: t.shape for n, t in ours.state_dict().items()}
    assert theirs.blocks[0].attn.num_heads == config.heads
    assert theirs.norm.eps == config.norm_eps
