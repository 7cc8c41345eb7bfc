"""Patch features as colours: their first three principal components over the photographs shown."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

COMPONENTS = 3
_CLIPPED = 0.01  # of the patches at each end of a component: a few outliers would leave no contrast to the others


@dataclass(frozen=True)
class Components:
    """``values``: float32 [B, grid, grid, 3] in 0…1, rows first, a component each; ``shares``: of the variance."""

    values: Tensor
    shares: list[float]


@torch.no_grad()
def patch_features(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """The last block's patch tokens after the norm: normalised pixels [B, 3, H, W] → float32 [B, L, D], L row by row.

    No patch is masked."""
    return vit.forward_features(pixels)[:, vit.num_prefix_tokens :].float()


def principal_components(features: Tensor) -> Components:
    """Features [B, L, D] of a square grid of patches → what a picture of them shows.

    The components are those of all patches of all photographs together, so that a colour means the same everywhere. A
    component's sign is free: it is chosen such that the largest of its weights is positive, and equal features give
    equal pictures."""
    batch, patches, _ = features.shape
    grid = round(patches**0.5)
    rows = features.flatten(0, 1).double()
    rows = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(rows.T @ rows)  # rising; a direction is a column
    chosen = directions.flip(1)[:, :COMPONENTS]
    largest = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True))
    scores = rows @ (chosen * largest.sign())
    low, high = torch.quantile(scores, torch.tensor([_CLIPPED, 1 - _CLIPPED], dtype=scores.dtype), dim=0)
    values = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    shares = variances.flip(0)[:COMPONENTS].clamp(min=0) / variances.sum().clamp(min=1e-12)
    return Components(values.float().reshape(batch, grid, grid, -1), shares.tolist())
