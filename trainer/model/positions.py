"""Fixed two-dimensional sin-cos positions, as MAE lays them out (arXiv 2111.06377, appendix A.1)."""

import torch
from torch import Tensor


def sincos_positions(grid_size: int, dim: int) -> Tensor:
    """Positions of the class token (all zeros) and of a square grid of patches, row by row.

    The first half of the channels encodes the column, the second half the row; each half is sin(x·ω) then cos(x·ω)
    with ω_i = 10000^(-i/(dim/4)). Computed in float64 and rounded once.

    Returns: float32 [1, 1 + grid_size², dim]; ``dim`` is a multiple of 4.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, dim/2]
    columns = axis[None, :, :].expand(grid_size, -1, -1)
    rows = axis[:, None, :].expand(-1, grid_size, -1)
    patches = torch.cat([columns, rows], dim=2).reshape(1, grid_size**2, dim)
    return torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1).float()


def add_positions(tokens: Tensor, positions: Tensor) -> Tensor:
    """``tokens + positions``, added in fp32 and rounded once to the tokens' dtype."""
    return (tokens + positions).to(tokens.dtype)
