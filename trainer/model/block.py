"""The transformer block of encoder and decoders: timm's, as MAE sets it up."""

from functools import partial

from timm.models.vision_transformer import Block
from torch import nn


def transformer_block(dim: int, heads: int, mlp_ratio: float, norm_eps: float) -> Block:
    """Pre-norm block with biases on queries, keys and values and exact GELU: [B, N, dim] → [B, N, dim]."""
    norm_layer = partial(nn.LayerNorm, eps=norm_eps)
    # timm passes partials here itself, but annotates a class
    return Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer)  # type: ignore[arg-type]
