"""A stage: what turns the output of one encoder block into a prediction of cells (LocalMIM, arXiv 2303.05251)."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.block import transformer_block
from trainer.model.config import ModelConfig
from trainer.model.exact_buffers import ExactBuffers
from trainer.model.masking import Masking
from trainer.model.positions import add_positions, sincos_positions
from trainer.model.tiles import TileConv2d, TileConvTranspose2d


class Stage(nn.Module):
    """LayerNorm over the encoder's tokens, then a decoder at the stage's scale."""

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.decoder = Decoder(config, scale)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Encoder tokens [B, 1 + K, D] → prediction [B, cells, values of a cell]."""
        return self.decoder(self.norm(tokens), masking)


class Decoder(ExactBuffers):
    """Fills the masked places with a learned token, mixes, and resizes the grid of patches to the grid of cells.

    What it computes per cell it computes on rows of channels, in any order of the cells: those that come of one patch
    stay together, and only the predictions, far narrower than what they are made from, are put in rows and columns.
    """

    pos_embed: Tensor

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.embed = nn.Linear(config.width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.register_buffer("pos_embed", sincos_positions(config.grid_size, dim), persistent=False)
        self.blocks = nn.ModuleList(
            transformer_block(dim, config.decoder_heads, config.decoder_mlp_ratio, config.norm_eps)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.resize, resized_dim = _resize(dim, scale, config.norm_eps)
        self.predict = TileConv2d(resized_dim, config.cell_values, kernel_size=1)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Normalised encoder tokens [B, 1 + K, D], class token first → prediction [B, cells, values of a cell]."""
        tokens = add_positions(self._with_masked_places(self.embed(tokens), masking), self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.norm(tokens[:, 1:])
        return _in_rows(self.predict(self.resize(patches)))

    def _with_masked_places(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Class token and kept patches [B, 1 + K, dim] → class token and every patch in its place [B, 1 + L, dim]."""
        batch, num_patches = masking.mask.shape
        places = self.mask_token.expand(batch, 1 + num_patches, -1).flatten(0, 1)
        return places.index_copy(0, masking.seen, tokens.flatten(0, 1)).unflatten(0, (batch, 1 + num_patches))


class JoinPatches(nn.Module):
    """Mean over 2×2 patches: [B, L, C] → [B, L/4, C], L a square grid row by row."""

    def forward(self, patches: Tensor) -> Tensor:
        side = isqrt(patches.shape[1])
        grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # pooled with its channels last, as it lies
        return F.avg_pool2d(grid, 2).permute(0, 2, 3, 1).flatten(1, 2)


def _resize(dim: int, scale: float, norm_eps: float) -> tuple[nn.Sequential, int]:
    """The layers that make cells of patches, and the channels that they leave: [B, L, dim] → [B, L, 4, …, channels],
    a 4 for each doubling of the grid, or [B, L/4, dim]."""
    if scale == 4:
        layers = [
            TileConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            nn.LayerNorm(dim // 2, eps=norm_eps),
            nn.GELU(),
            TileConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        return nn.Sequential(*layers), dim // 4
    if scale == 2:
        return nn.Sequential(TileConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)), dim // 2
    if scale == 1:
        return nn.Sequential(), dim
    return nn.Sequential(JoinPatches()), dim  # scale ½: the last that the configuration allows


def _in_rows(cells: Tensor) -> Tensor:
    """[B, L, 4, …, C], where each 4 divides a cell in 2×2 → [B, L·4·…, C], the cells of the whole grid row by row."""
    batch, num_patches, *divisions, channels = cells.shape
    side, levels = isqrt(num_patches), 1 + len(divisions)
    halved = cells.reshape(batch, side, side, *[2, 2] * len(divisions), channels)
    rows, columns = range(1, 2 * levels, 2), range(2, 2 * levels + 1, 2)
    return halved.permute(0, *rows, *columns, 2 * levels + 1).flatten(1, -2)
