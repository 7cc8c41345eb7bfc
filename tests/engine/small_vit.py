"""A classifier small enough for hundreds of runs, with the unit interface that the engine asks of a model.

Widths are chosen so that groups divide evenly neither by the ranks nor by ZeRO's alignment. The attention has no key
bias: its true gradient is zero, so what it follows is rounding noise, which Adam blows up to full steps.
"""

import torch
import torch.nn.functional as F
from torch import nn

IMAGE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 12, 4, 18, 3, 4, 7


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)


class SmallViT(nn.Module):
    """Unit 0 is the embedding, unit i block i; the classifier belongs to the last block's unit."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.embedding = Embedding()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.num_units, self.frozen_units = depth + 1, 0

    def unit_of(self, parameter_name: str) -> int:
        part, _, rest = parameter_name.partition(".")
        if part == "blocks":
            return int(rest.split(".")[0]) + 1
        return 0 if part == "embedding" else self.num_units - 1

    def freeze_prefix(self, units: int) -> None:
        self.frozen_units = units
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.unit_of(name) >= units)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = images
        for unit, layer in enumerate([self.embedding, *self.blocks]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and unit >= self.frozen_units):
                x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)[:, 0]).float(), labels)


def batch(step: int, piece: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Piece `piece` of a step's global batch: images float32 [size, 3, 12, 12] and labels int64 [size].

    Pieces go to ranks first, then to micro-steps: 2 ranks and 1 rank with accumulation 2 see the same batch."""
    generator = torch.Generator().manual_seed(1000 * step + piece)
    images = torch.randn(size, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, CLASSES, (size,), generator=generator)
