"""The baseline of `benchmarks.step`: a LocalMIM training step as one would write it down from the papers.

It computes what `trainer.model.localmim.LocalMIM` computes, from the same weights under the same names, the way the
published step goes about it (arXiv 2303.05251, 2312.02194): HOG anew for every scale and colour channel, every patch
embedded and three quarters of them dropped, convolutions in the decoders, float images, an optimizer group for each
parameter, and losses read on the host in every step. Attention and blocks are timm's, AdamW is torch's, a gradient's
magnitude is torch's ``norm``: plain code, not slowed down, with nothing clever in it.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, PatchEmbed
from torch import Tensor, nn

from trainer.model.block import transformer_block
from trainer.model.config import ModelConfig
from trainer.model.positions import sincos_positions


class PlainHog(nn.Module):
    """HOG at one cell size, channel after channel: Sobel convolution, a map for each bin, average pooling.

    ``by_hand``: write the magnitude out instead of calling torch's ``norm``, which needs some ten times as long over
    two channels. One has to know that; so it is off, and measured as well."""

    kernels: Tensor

    def __init__(self, window: int, bins: int) -> None:
        super().__init__()
        self.window, self.bins, self.by_hand = window, bins, False
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("kernels", torch.stack([sobel, sobel.T])[:, None], persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] → [B, cells, 3·bins]."""
        channels = [self._cells(channel) for channel in pixels.split(1, dim=1)]
        return torch.cat(channels, dim=1).flatten(2).transpose(1, 2)

    def _cells(self, channel: Tensor) -> Tensor:
        """[B, 1, H, W] → [B, bins, H/window, W/window]."""
        gradient = F.conv2d(F.pad(channel, (1, 1, 1, 1), mode="reflect"), self.kernels)
        x, y = gradient.split(1, dim=1)
        magnitude = (x * x + y * y).sqrt() if self.by_hand else gradient.norm(dim=1, keepdim=True)
        orientation = (torch.atan2(x, y) / math.pi * self.bins).floor().long() % self.bins
        maps = magnitude.new_zeros(len(channel), self.bins, *channel.shape[2:])
        maps.scatter_(1, orientation, magnitude)
        return F.normalize(F.avg_pool2d(maps, self.window), dim=1)


class PlainDecoder(nn.Module):
    """One stage's decoder. B samples, K kept patches, L patches."""

    pos_embed: Tensor

    def __init__(self, config: ModelConfig, scale: float) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.grid_size = config.grid_size
        self.embed = nn.Linear(config.width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_embed", sincos_positions(config.grid_size, dim), persistent=False)
        self.blocks = nn.Sequential(
            *[
                transformer_block(dim, config.decoder_heads, config.decoder_mlp_ratio, config.norm_eps)
                for _ in range(config.decoder_depth)
            ]
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        half, quarter = dim // 2, dim // 4
        self.resize: nn.Sequential
        if scale == 4:
            norm = LayerNorm2d(half, eps=config.norm_eps)
            self.resize, dim = nn.Sequential(_double(dim, half), norm, nn.GELU(), _double(half, quarter)), quarter
        elif scale == 2:
            self.resize, dim = nn.Sequential(_double(dim, half)), half
        else:
            self.resize = nn.Sequential(*([nn.AvgPool2d(2)] if scale < 1 else []))
        self.predict = nn.Conv2d(dim, 3 * config.hog_bins, kernel_size=1)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Encoder tokens [B, 1 + K, D] and each patch's place among (kept, masked) [B, L] → [B, cells, 3·bins]."""
        tokens = self.embed(tokens)
        batch, num_patches = restore.shape
        masked = self.mask_token.expand(batch, num_patches + 1 - tokens.shape[1], -1)
        patches = torch.cat([tokens[:, 1:], masked], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        patches = self.norm(self.blocks(tokens))[:, 1:]
        grid = patches.transpose(1, 2).reshape(batch, -1, self.grid_size, self.grid_size)
        return self.predict(self.resize(grid)).flatten(2).transpose(1, 2)


class PlainStage(nn.Module):
    """LayerNorm, decoder and target of one stage."""

    def __init__(self, config: ModelConfig, scale: float, window: int) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.decoder = PlainDecoder(config, scale)
        self.hog = PlainHog(window, config.hog_bins)

    def loss(self, tokens: Tensor, restore: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        """Squared error averaged over channels and masked cells. ``mask``: [B, 1, side, side], 1 = masked."""
        prediction = self.decoder(self.norm(tokens), restore)
        if self.scale < 1:
            mask = F.avg_pool2d(mask, 2)
        else:
            mask = mask.repeat_interleave(int(self.scale), dim=2).repeat_interleave(int(self.scale), dim=3)
        error = (prediction - self.hog(pixels)).square().mean(dim=2)
        return (error * mask.flatten(1)).sum() / mask.sum()


class PlainLocalMIM(nn.Module):
    """Encoder and stages; the state dict is that of `LocalMIM`."""

    pos_embed: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("pos_embed", sincos_positions(config.grid_size, config.width), persistent=False)
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, config.width)
        self.blocks = nn.ModuleList(
            transformer_block(config.width, config.heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.num_blocks)
        )
        self.stages = nn.ModuleList(
            PlainStage(config, scale, window)
            for scale, window in zip(config.stage_scales, config.hog_windows, strict=True)
        )

    def forward(self, pixels: Tensor, noise: Tensor) -> list[Tensor]:
        """Each stage's loss, for normalised float32 pixels [B, 3, H, W] and masking noise [B, L]."""
        config = self.config
        patches = self.patch_embed(pixels) + self.pos_embed[:, 1:]
        shuffle = noise.argsort(dim=1, stable=True)
        restore = shuffle.argsort(dim=1)
        kept = patches.gather(1, shuffle[:, : config.num_kept, None].expand(-1, -1, config.width))
        mask = (restore >= config.num_kept).float().reshape(-1, 1, config.grid_size, config.grid_size)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        tokens = torch.cat([cls_token, kept], dim=1)
        losses = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in config.stage_blocks:
                stage = self.stages[config.stage_blocks.index(index)]
                assert isinstance(stage, PlainStage)
                losses.append(stage.loss(tokens, restore, mask, pixels))
        return losses


class PlainTraining:
    """Model and AdamW, a step at a time."""

    def __init__(self, model: PlainLocalMIM, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
        self.model = model
        groups = list(_one_group_each(model, lr, weight_decay))
        self.optimizer = torch.optim.AdamW(groups, betas=betas)

    def magnitudes_by_hand(self, by_hand: bool) -> None:
        """Which form of `PlainHog` the next steps take."""
        for module in self.model.modules():
            if isinstance(module, PlainHog):
                module.by_hand = by_hand

    def step(self, pixels: Tensor, noise: Tensor) -> list[float]:
        """Forward, backward, update. Returns the loss and each stage's own, on the host."""
        losses = self.model(pixels, noise)
        loss = torch.stack(losses).sum()
        values = [loss.item(), *(stage.item() for stage in losses)]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return values


def _one_group_each(model: nn.Module, lr: float, weight_decay: float) -> Iterator[dict]:
    for parameter in model.parameters():
        yield {"params": [parameter], "lr": lr, "weight_decay": weight_decay if parameter.ndim > 1 else 0.0}


def _double(channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2)
