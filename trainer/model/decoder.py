"""A stage: what turns the output of one encoder block into a prediction of HOG cells (LocalMIM, arXiv 2303.05251)."""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from trainer.model.block import transformer_block
from trainer.model.config import ModelConfig
from trainer.model.exact_buffers import ExactBuffers
from trainer.model.masking import Masking
from trainer.model.positions import add_positions, sincos_positions


class Stage(nn.Module):
    """LayerNorm over the encoder's tokens, then a decoder at the stage's scale."""

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.decoder = Decoder(config, scale)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Encoder tokens [B, 1 + K, D] → prediction [B, cells, 3·bins]."""
        return self.decoder(self.norm(tokens), masking)


class Decoder(ExactBuffers):
    """Fills the masked places with a learned token, mixes, and resizes the grid of patches to the grid of cells."""

    pos_embed: Tensor

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.grid_size = config.grid_size
        self.embed = nn.Linear(config.width, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.register_buffer("pos_embed", sincos_positions(self.grid_size, dim), persistent=False)
        self.blocks = nn.ModuleList(
            transformer_block(dim, config.decoder_heads, config.decoder_mlp_ratio, config.norm_eps)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.resize, resized_dim = _resize(dim, scale, config.norm_eps)
        self.predict = nn.Conv2d(resized_dim, 3 * config.hog_bins, kernel_size=1)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Normalised encoder tokens [B, 1 + K, D], class token first → prediction [B, cells, 3·bins]."""
        tokens = add_positions(self._with_masked_places(self.embed(tokens), masking), self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.norm(tokens)[:, 1:]
        grid = patches.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))
        return self.predict(self.resize(grid)).flatten(2).transpose(1, 2)

    def _with_masked_places(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Class token and kept patches [B, 1 + K, dim] → class token and every patch in its place [B, 1 + L, dim]."""
        batch, num_patches = masking.restore.shape
        num_masked = num_patches - masking.kept.shape[1]
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.expand(batch, num_masked, -1)], dim=1)
        patches = shuffled.gather(1, masking.restore[:, :, None].expand_as(shuffled))
        return torch.cat([tokens[:, :1], patches], dim=1)


def _resize(dim: int, scale: float, norm_eps: float) -> tuple[nn.Sequential, int]:
    """The layers from the grid of patches to the grid of cells, and the channels that they leave."""
    if scale == 4:
        layers = [
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            LayerNorm2d(dim // 2, eps=norm_eps),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        ]
        return nn.Sequential(*layers), dim // 4
    if scale == 2:
        return nn.Sequential(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)), dim // 2
    if scale == 1:
        return nn.Sequential(), dim
    return nn.Sequential(nn.AvgPool2d(2)), dim  # scale ½: the last that the configuration allows
