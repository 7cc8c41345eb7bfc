"""What autograd keeps between forward and backward, counted from the shapes of each operation's saved tensors.

A tensor that two operations save is counted once, parameters not at all. The attention is the fused one, which saves
its output and one logarithm per row instead of the weights. Knows neither torch nor DeepSpeed.
"""

from dataclasses import dataclass

from trainer.engine.ds_config import ELEMENT_BYTES, Precision
from trainer.model.config import ModelConfig

_FLOAT32, _INT64 = 4, 8
_STATISTICS = 2 * _FLOAT32
"""Mean and inverse deviation that a LayerNorm saves for each row: fp32 on a GPU. A CPU keeps them in the precision of
the activations, which in a tiny model is a percent or two less in all."""


@dataclass(frozen=True)
class _Saved:
    """Bytes for each image of the micro-batch, and bytes whatever its size."""

    per_image: int
    constant: int = 0


def saved_activation_bytes(
    config: ModelConfig,
    frozen_units: int,
    micro_batch: int,
    precision: Precision,
    *,
    checkpoint_activations: bool = False,
) -> int:
    """Bytes that a micro-batch leaves on its rank for the backward pass, with the first ``frozen_units`` units frozen.

    Frozen units save nothing, and nor do their stages. With ``checkpoint_activations`` a live encoder block saves its
    input only.
    """
    first_live = max(0, frozen_units - 1)
    tokens = (1 + config.num_kept) * config.width * ELEMENT_BYTES[precision]
    block = tokens if checkpoint_activations else encoder_block_bytes(config, precision)
    # A block's input is what its predecessor gave; after the last block only its stage keeps what it gave.
    parts = [_Saved((config.num_blocks - first_live) * block + tokens)]
    parts.append(_Saved((1 + config.num_kept) * _INT64))  # Masking.seen, which all stages share
    if frozen_units == 0:
        parts.append(_Saved(config.num_kept * 3 * config.patch_size**2 * ELEMENT_BYTES[precision]))  # the kept pixels
    parts += [
        _stage(config, scale, precision)
        for stage_block, scale in zip(config.stage_blocks, config.stage_scales, strict=True)
        if stage_block >= first_live
    ]
    return sum(micro_batch * part.per_image + part.constant for part in parts)


def encoder_block_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes per image that one encoder block saves: what checkpointing recomputes and keeps for a moment."""
    return _block(1 + config.num_kept, config.width, config.heads, config.mlp_ratio, precision)


def _block(tokens: int, dim: int, heads: int, mlp_ratio: float, precision: Precision) -> int:
    """Pre-norm transformer block, bytes per image.

    In its width: the inputs and outputs of two LayerNorms (4), queries, keys and values (3), the attention's output
    (1); in its MLP's width: what goes into the GELU and what comes out."""
    row = (8 * dim + 2 * int(dim * mlp_ratio)) * ELEMENT_BYTES[precision]
    return tokens * (row + 2 * _STATISTICS + heads * _FLOAT32)  # and the logarithm of each head's softmax sum


def _stage(config: ModelConfig, scale: float, precision: Precision) -> _Saved:
    """A stage's LayerNorm, decoder and loss. The LayerNorm's input is the block's output, counted there."""
    size, dim, patches = ELEMENT_BYTES[precision], config.decoder_dim, config.num_patches
    normed = (1 + config.num_kept) * (config.width * size + _STATISTICS)
    embedded = (1 + config.num_kept) * dim * size  # put among the mask tokens
    block = _block(1 + patches, dim, config.decoder_heads, config.decoder_mlp_ratio, precision)
    final_norm = (1 + 2 * patches) * dim * size + patches * _STATISTICS  # its input with the class token, its output
    cells = int(patches * scale**2)
    loss = cells * (config.cell_values + 1) * _FLOAT32  # the difference to the target, and each cell's weight
    resize = _resize(patches, dim, scale, size)
    return _Saved(
        normed + embedded + config.decoder_depth * block + final_norm + resize.per_image + loss,
        resize.constant + _FLOAT32,  # the sum of the weights, which divides the loss
    )


def _resize(patches: int, dim: int, scale: float, size: int) -> _Saved:
    """From patches to cells: what its layers save beyond the final norm's output, which is the first one's input.

    A transposed convolution saves its weights in the order of the matrix product, a copy."""
    kernel = 4 * dim * (dim // 2) * size
    if scale == 4:  # LayerNorm's input, GELU's input and output at twice the grid; the prediction's input at four times
        doubled = 4 * patches * (3 * (dim // 2) * size + _STATISTICS)
        return _Saved(doubled + 16 * patches * (dim // 4) * size, kernel + 4 * (dim // 2) * (dim // 4) * size)
    if scale == 2:
        return _Saved(4 * patches * (dim // 2) * size, kernel)
    if scale == 1:
        return _Saved(0)
    return _Saved(patches // 4 * dim * size)  # scale ½


def working_bytes(
    config: ModelConfig,
    frozen_units: int,
    micro_batch: int,
    precision: Precision,
    *,
    checkpoint_activations: bool = False,
) -> int:
    """What a micro-batch needs at its peak beyond `saved_activation_bytes`, rounded up to the larger of its phases.

    Before anything is saved, the targets are made, HOG in 28 bytes for each pixel and channel, beside the masks. Later
    come the pixels and targets beside the saved tensors, the errors of the losses and their gradients, the widest
    gradient of the decoders, and where blocks are checkpointed the one that is recomputed. The images, uint8, count
    as many times as `trainer.device_feed` has micro-batches on an accelerator at once."""
    saved = saved_activation_bytes(
        config, frozen_units, micro_batch, precision, checkpoint_activations=checkpoint_activations
    )
    size, channels = ELEMENT_BYTES[precision], 3 * config.image_size**2
    errors = [
        int(config.num_patches * scale**2) * config.cell_values * _FLOAT32
        for block, scale in zip(config.stage_blocks, config.stage_scales, strict=True)
        if block >= frozen_units - 1
    ]
    decoder_tokens = (1 + config.num_patches) * config.decoder_dim
    beside = [
        channels * _FLOAT32 + sum(errors) + decoder_tokens * _FLOAT32,  # the last decoder's forward
        2 * sum(errors) + max(errors),  # the losses: targets, predictions and a square
        4 * max(errors),  # their backward
        int(decoder_tokens * config.decoder_mlp_ratio) * size,  # the last decoder's backward
    ]
    if checkpoint_activations:
        hidden = (1 + config.num_kept) * int(config.width * config.mlp_ratio) * size
        beside.append(encoder_block_bytes(config, precision) + hidden)
    masking = config.num_patches * (_INT64 + _FLOAT32) + (1 + config.num_kept) * _INT64
    making_targets = _target_phase(config, frozen_units) + masking
    peak = max(micro_batch * making_targets, saved + micro_batch * max(beside))
    return peak - saved + MICRO_BATCHES_AT_ONCE * micro_batch * channels


def _target_phase(config: ModelConfig, frozen_units: int) -> int:
    """Bytes in use while the targets of one image are made."""
    channels = 3 * config.image_size**2
    if config.target == "hog":
        return _HOG_PHASE * channels
    live = zip(config.stage_blocks, config.stage_scales, strict=True)
    finest = max(scale for block, scale in live if block >= frozen_units - 1)
    return _PIXEL_PHASE * channels + _CELL_PHASE * int(config.num_patches * finest**2) * config.cell_values


MICRO_BATCHES_AT_ONCE = 4
"""The one that computes, two that are ready, and for a moment the one before."""
_HOG_PHASE = 28
"""Bytes that making the histograms has in use at once for each pixel and channel, the fp32 pixels among them."""
_PIXEL_PHASE, _CELL_PHASE = 10, 16
"""The same of pixel targets: for each pixel and channel, and for each value of the finest cells."""
