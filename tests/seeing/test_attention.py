"""The attention shown is the attention that the model uses."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.utils import AttentionExtract

from tests.seeing.small_encoder import CONFIG
from trainer.pretrained import build_vit
from trainer.seeing.attention import class_attention, class_token_shares


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(1)
    vit = build_vit(CONFIG, num_classes=0).eval()
    for name, parameter in vit.named_parameters():  # timm's own start hardly attends to anything
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return vit


@torch.no_grad()
def test_the_shares_give_the_output_of_the_fused_kernel(vit: VisionTransformer) -> None:
    attention, tokens = vit.blocks[0].attn, torch.randn(3, 17, 32)
    assert attention.fused_attn
    shares = class_token_shares(attention, tokens)
    assert torch.allclose(shares.sum(-1), torch.ones(3, 4))
    values = attention.qkv(tokens)[..., 64:].unflatten(-1, (4, 8))  # [B, N, heads, d]
    mixed = torch.einsum("bhn,bnhd->bhd", shares, values).flatten(1)
    assert torch.allclose(attention.proj(mixed), attention(tokens)[:, 0], atol=1e-5)


@torch.no_grad()
def test_maps_are_those_of_the_blocks_asked_for_head_by_head(vit: VisionTransformer) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    maps = class_attention(vit, pixels, [3, 0])
    assert not any(block.attn._forward_pre_hooks for block in vit.blocks)
    for block in vit.blocks:
        block.attn.fused_attn = False  # then timm computes it in the open
    theirs = AttentionExtract(vit, method="hook")(pixels)
    for block, ours in zip([3, 0], maps, strict=True):
        expected = theirs[f"blocks.{block}.attn.attn_drop"][:, :, 0, 1:]
        assert ours.shape == (2, 4, 16)
        assert torch.allclose(ours, expected, atol=1e-6)
        assert (ours.amax(-1) > 2 / 17).all(), "heads that look somewhere"
