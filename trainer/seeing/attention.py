"""Where the class token looks: its attention to the patches, head by head."""

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor


@torch.no_grad()
def class_attention(vit: VisionTransformer, pixels: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """What the class token takes from each patch, in each head of some blocks.

    Args:
        pixels: float32 [B, 3, H, W], normalised.
        blocks: from 0.

    Returns: for each block float32 [B, heads, L], patches row by row. A map sums to 1 less what the class token takes
    from itself.
    """
    maps: dict[int, Tensor] = {}

    def keep(index: int, attention: Attention, tokens: Tensor) -> None:
        maps[index] = class_token_shares(attention, tokens)[..., 1:]

    hooks = []
    for index in blocks:
        attention = cast(Block, vit.blocks[index]).attn
        hooks.append(attention.register_forward_pre_hook(lambda part, inputs, i=index: keep(i, part, inputs[0])))
    try:
        vit.forward_features(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [maps[index] for index in blocks]


def class_token_shares(attention: Attention, tokens: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d) of the first token: [B, N, D] → [B, heads, N], rows that sum to 1.

    The module itself computes it inside a fused kernel, which hands none of it out."""
    batch, length, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, length, 3, attention.num_heads, attention.head_dim)
    queries, keys, _ = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
    queries, keys = attention.q_norm(queries[:, :, :1]), attention.k_norm(keys)
    return (queries * attention.scale @ keys.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]
