"""What a step costs: matmul FLOPs counted from the shapes, 2 per multiply-add.

Convolutions count as the matmuls that they are. Element-wise work, normalisation and the targets are left out; so
is what a kernel or a checkpointed block repeats in the backward pass, as model FLOPs are usually defined.
"""

from typing import NamedTuple

from trainer.model.config import EncoderConfig, ModelConfig


class StepFlops(NamedTuple):
    """Matmul FLOPs of one image."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def step_flops(config: ModelConfig, frozen_units: int) -> StepFlops:
    """FLOPs of one image's forward and backward with the first ``frozen_units`` units frozen.

    A live matmul costs twice its forward in the backward pass, once for its input's gradient and once for its weight's
    (an attention product: once for each factor). The patch embedding's input needs no gradient. A frozen unit costs
    its forward, and its stage nothing.
    """
    patches = _patch_embedding(config, config.num_kept)
    tokens = 1 + config.num_kept
    block = _transformer_block(tokens, config.width, int(config.width * config.mlp_ratio))
    frozen_blocks = max(0, frozen_units - 1)
    stages = sum(
        _decoder(config, scale)
        for stage_block, scale in zip(config.stage_blocks, config.stage_scales, strict=True)
        if stage_block >= frozen_blocks
    )
    return StepFlops(
        forward=patches + config.num_blocks * block + stages,
        backward=2 * (config.num_blocks - frozen_blocks) * block + 2 * stages + (patches if frozen_units == 0 else 0),
    )


def classifier_flops(config: EncoderConfig, classes: int) -> StepFlops:
    """FLOPs of one image's forward and backward in a classifier that sees all patches and trains as a whole."""
    patches = _patch_embedding(config, config.num_patches)
    block = _transformer_block(1 + config.num_patches, config.width, int(config.width * config.mlp_ratio))
    above = config.num_blocks * block + _matmul(1, config.width, classes)
    return StepFlops(forward=patches + above, backward=patches + 2 * above)


def _patch_embedding(config: EncoderConfig, patches: int) -> int:
    """Masked patches are not embedded."""
    return _matmul(patches, 3 * config.patch_size**2, config.width)


def _transformer_block(tokens: int, dim: int, mlp_dim: int) -> int:
    projections = _matmul(tokens, dim, 3 * dim) + _matmul(tokens, dim, dim)
    attention = 2 * _matmul(tokens, dim, tokens)  # scores, and their product with the values, over all heads
    mlp = _matmul(tokens, dim, mlp_dim) + _matmul(tokens, mlp_dim, dim)
    return projections + attention + mlp


def _decoder(config: ModelConfig, scale: float) -> int:
    dim, patches = config.decoder_dim, config.num_patches
    embed = _matmul(1 + config.num_kept, config.width, dim)
    blocks = config.decoder_depth * _transformer_block(1 + patches, dim, int(dim * config.decoder_mlp_ratio))
    resize, channels, cells = 0, dim, patches
    while cells < patches * scale**2:  # a 2×2 transposed convolution: each cell becomes four of half the channels
        resize += _matmul(cells, channels, 4 * (channels // 2))
        channels, cells = channels // 2, cells * 4
    cells = int(patches * scale**2)
    return embed + blocks + resize + _matmul(cells, channels, config.cell_values)


def _matmul(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns
