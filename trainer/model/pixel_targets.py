"""Pixels as what the stages predict: each cell's own, reduced to as many as the finest cell has.

MAE's normalised pixels (arXiv 2111.06377 §4), at several scales. With a single scale nothing is averaged: at scale 1 a
cell is a patch, and its target that of MAE.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-6


@torch.no_grad()
def pixel_targets(images: Tensor, windows: Sequence[int], side: int) -> list[Tensor]:
    """Each cell averaged down to ``side``×``side`` pixels, then (x - mean) / √(variance + 1e-6) over all its values.

    Args:
        images: float32 [B, C, H, W], normalised.
        windows: cell widths in pixels, multiples of ``side``, each dividing H and W.

    Returns: for each window float32 [B, cells, C·side²], cells row by row; in a cell channel by channel, row by row.
    """
    return [_normalised_cells(F.avg_pool2d(images, window // side), side) for window in windows]


def _normalised_cells(images: Tensor, side: int) -> Tensor:
    """[B, C, rows·side, columns·side] → [B, rows·columns, C·side²], each cell normalised."""
    grid = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, C, rows, side, columns, side]
    cells = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(cells, dim=-1, keepdim=True, correction=0)
    return (cells - mean) * (variance + _EPSILON).rsqrt()
