"""What the model is: a ViT encoder, the stages that read it, and the targets that those stages predict.

Knows neither torch nor files, so that the schedule and the planning tools can use it in a process without a GPU.
"""

import math
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from trainer.section import Section


class VitSize(NamedTuple):
    """Shape of a standard ViT (arXiv 2010.11929 table 1; tiny and small from DeiT, arXiv 2012.12877 table 1)."""

    width: int
    depth: int
    heads: int


VIT_SIZES = {
    "tiny": VitSize(192, 12, 3),
    "small": VitSize(384, 12, 6),
    "base": VitSize(768, 12, 12),
    "large": VitSize(1024, 24, 16),
    "huge": VitSize(1280, 32, 16),
}

# The decoder heads that LocalMIM defines: cells per patch along one side.
SCALES = (4.0, 2.0, 1.0, 0.5)


class EncoderConfig(Section):
    """The shape of a ViT and of its images."""

    size: Literal["tiny", "small", "base", "large", "huge"] = Field(
        default="base",
        description="Standard ViT shape; the next keys can override its width, depth and heads.",
    )
    image_size: int = Field(default=224, gt=0, description="Height and width of the training crop, in pixels.")
    patch_size: int = Field(default=16, gt=0, description="Height and width of a patch, in pixels; divides image_size.")
    embed_dim: int | None = Field(default=None, gt=0, description="Encoder width; the size's own when null.")
    depth: int | None = Field(default=None, gt=0, description="Number of encoder blocks; the size's own when null.")
    num_heads: int | None = Field(default=None, gt=0, description="Encoder attention heads; the size's own when null.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of the encoder's MLPs over embed_dim.")
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of every LayerNorm.")

    @property
    def width(self) -> int:
        """Encoder width D."""
        return self.embed_dim or VIT_SIZES[self.size].width

    @property
    def num_blocks(self) -> int:
        """Number of encoder blocks."""
        return self.depth or VIT_SIZES[self.size].depth

    @property
    def heads(self) -> int:
        """Attention heads of the encoder."""
        return self.num_heads or VIT_SIZES[self.size].heads

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image, L."""
        return self.grid_size**2

    @model_validator(mode="after")
    def _refuse_another_shape(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}: "
                f"take {self.image_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        _check_attention("encoder", "embed_dim", self.width, "num_heads", self.heads)
        return self


class ModelConfig(EncoderConfig):
    """LocalMIM (arXiv 2303.05251) for a ViT.

    A *stage* reads the output of one encoder block and predicts cells at one *scale*, the number of cells per patch
    along one side; a cell (the HOG window) is therefore ``patch_size / scale`` pixels wide.
    """

    mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of the patches hidden from the encoder.")
    stages: list[int] | Literal["every"] | None = Field(
        default=None,
        description="Decoded blocks, from 0, rising, or every; [1, 3, depth-3, depth-1] when null.",
    )
    scales: list[float] | None = Field(
        default=None,
        description="Cells per patch side for each stage: 4, 2, 1 or 0.5; when null [4, 2, 1, 0.5], of every block a "
        "quarter each, fine ones first.",
    )
    stage_weights: list[float] | None = Field(
        default=None, description="Weight of each stage's loss in the loss, at the start of the run; 1 each when null."
    )
    stage_weights_end: list[float] | None = Field(
        default=None,
        description="Weights at the end of the run, reached in a straight line over its steps; those of the start when "
        "null.",
    )
    target: Literal["hog", "pixels"] = Field(
        default="hog",
        description="What a cell is to be predicted as: its histograms of oriented gradients, or its pixels, averaged "
        "down to as many as the finest cell has and normalised cell by cell.",
    )
    hog_bins: int = Field(default=9, gt=1, description="Orientation bins over 180 degrees, per colour channel.")
    decoder_dim: int = Field(default=256, gt=0, description="Width of the stages' decoders.")
    decoder_depth: int = Field(default=1, gt=0, description="Transformer blocks in each decoder.")
    decoder_heads: int = Field(default=8, gt=0, description="Attention heads of the decoders.")
    decoder_mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of their MLPs over decoder_dim.")

    @classmethod
    def around(cls, encoder: EncoderConfig) -> Self:
        """For an encoder alone, however few blocks it has: a single stage, which reads the last."""
        return cls(**encoder.model_dump(), stages=[encoder.num_blocks - 1], scales=[1.0])

    @property
    def num_units(self) -> int:
        """Freezable units: 0 = patch embedding and class token, i = block i-1 with the stage that reads it."""
        return self.num_blocks + 1

    @property
    def stage_blocks(self) -> list[int]:
        """Block (from 0) read by each stage."""
        if self.stages == "every":
            return list(range(self.num_blocks))
        return self.stages if self.stages is not None else [1, 3, self.num_blocks - 3, self.num_blocks - 1]

    @property
    def stage_scales(self) -> list[float]:
        """Cells per patch side of each stage."""
        if self.scales is not None:
            return self.scales
        if self.stages == "every":
            return [SCALES[block * len(SCALES) // self.num_blocks] for block in range(self.num_blocks)]
        return list(SCALES)

    @property
    def hog_windows(self) -> list[int]:
        """Width of each stage's cell, in pixels."""
        return [int(self.patch_size / scale) for scale in self.stage_scales]

    @property
    def cell_pixels(self) -> int:
        """Pixels along one side that a cell is averaged down to where pixels are the target."""
        return math.gcd(*self.hog_windows)

    @property
    def cell_values(self) -> int:
        """Numbers that are predicted for a cell: of each colour channel its bins or its pixels."""
        return 3 * (self.hog_bins if self.target == "hog" else self.cell_pixels**2)

    def stage_weights_at(self, progress: float) -> list[float] | None:
        """Weight of each stage's loss after a share of the run, from 0 to 1; None where all are 1 throughout."""
        if self.stage_weights is None and self.stage_weights_end is None:
            return None
        start = self.stage_weights or [1.0] * len(self.stage_blocks)
        end = self.stage_weights_end or start
        return [first + progress * (last - first) for first, last in zip(start, end, strict=True)]

    @property
    def num_kept(self) -> int:
        """Patches that the encoder sees."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> Self:
        self._check_mask()
        _check_attention("decoder", "decoder_dim", self.decoder_dim, "decoder_heads", self.decoder_heads)
        self._check_stages()
        self._check_scales()
        self._check_weights()
        return self

    def _check_mask(self) -> None:
        if not 1 <= self.num_kept < self.num_patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} keeps {self.num_kept} of {self.num_patches} patches: "
                "at least one must be kept and one masked"
            )

    def _check_stages(self) -> None:
        blocks, last = self.stage_blocks, self.num_blocks - 1
        hint = "" if self.stages is not None else f" (the default for {self.num_blocks} blocks: set stages yourself)"
        if not blocks:
            raise ValueError("stages is empty: at least one block must be decoded")
        if sorted(set(blocks)) != blocks:
            raise ValueError(f"stages {blocks} must rise without repeats{hint}")
        if blocks[0] < 0 or blocks[-1] > last:
            raise ValueError(f"stages {blocks} must lie between 0 and {last}, the encoder's blocks{hint}")
        if blocks[-1] != last:
            raise ValueError(
                f"the last of stages {blocks} must be {last}: the blocks above {blocks[-1]} would get no gradient"
            )

    def _check_scales(self) -> None:
        scales = self.stage_scales
        if len(scales) != len(self.stage_blocks):
            raise ValueError(
                f"{len(self.stage_blocks)} stages {self.stage_blocks} but {len(scales)} scales {scales}: "
                "give one scale for each stage"
            )
        for scale in scales:
            if scale not in SCALES:
                raise ValueError(f"scale {scale} has no decoder head: take 4, 2, 1 or 0.5")
            if self.patch_size % scale:
                raise ValueError(
                    f"scale {scale:g} needs HOG cells of patch_size/scale = {self.patch_size / scale:g} pixels, "
                    "which is not a whole number: take another scale or patch_size"
                )
            if scale < 1 and self.grid_size % 2:
                raise ValueError(
                    f"scale 0.5 joins 2x2 patches, but image_size {self.image_size} / patch_size {self.patch_size} "
                    f"gives an odd grid of {self.grid_size} patches a side"
                )

    def _check_weights(self) -> None:
        for key, weights in (("stage_weights", self.stage_weights), ("stage_weights_end", self.stage_weights_end)):
            if weights is None:
                continue
            if len(weights) != len(self.stage_blocks):
                raise ValueError(f"{key} {weights}: give one weight for each of the {len(self.stage_blocks)} stages")
            if min(weights) < 0 or max(weights) == 0:
                raise ValueError(f"{key} {weights}: no weight may be negative, and one must be above 0")
        final = self.stage_weights_at(1.0)
        if final is not None and final[-1] == 0:
            raise ValueError(
                "the last stage's weight is 0 at the end of the run: its loss is the only one that trains the last "
                "block; give it one above 0"
            )


def _check_attention(part: str, dim_key: str, dim: int, heads_key: str, heads: int) -> None:
    if dim % 4:
        raise ValueError(
            f"{dim_key} {dim} is not a multiple of 4, which the {part}'s sin-cos positions need: "
            f"take {-(-dim // 4) * 4}"
        )
    if dim % heads:
        good = max(n for n in range(1, min(heads, dim) + 1) if dim % n == 0)
        raise ValueError(f"{heads_key} {heads} does not divide {dim_key} {dim}: take {good}")
