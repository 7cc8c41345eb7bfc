"""Which patches the encoder sees: a pure function of one 64-bit key per sample.

The noise that orders the patches comes from a counter-based generator in integer arithmetic, so a sample gets the same
mask on a CPU and on a GPU, whatever the micro-batch, the rank or the number of ranks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """The patches of a micro-batch, split into kept and masked. L = patches, K = kept patches."""

    kept: Tensor
    """int64 [B, K]: indices of the kept patches, in the order in which the encoder sees them."""
    seen: Tensor
    """int64 [B·(1 + K)]: where the encoder's tokens, class token first, belong in [B, 1 + L] tokens laid end to end."""
    mask: Tensor
    """float32 [B, L]: 1 = masked, 0 = kept."""


def random_masking(noise: Tensor, num_kept: int) -> Masking:
    """Keep the ``num_kept`` patches of smallest noise (MAE, arXiv 2111.06377 §3); ties go to the earlier patch.

    Args:
        noise: [B, L], any values.
    """
    kept = torch.argsort(noise, dim=1, stable=True)[:, :num_kept]
    seen = flat_rows(F.pad(kept + 1, (1, 0)), 1 + noise.shape[1])
    return Masking(kept, seen, mask=torch.ones_like(noise, dtype=torch.float32).scatter_(1, kept, 0.0))


def flat_rows(indices: Tensor, length: int) -> Tensor:
    """Each sample's ``indices`` [B, n] among its ``length`` rows → int64 [B·n] among the rows of all, end to end."""
    return (indices + torch.arange(len(indices), device=indices.device)[:, None] * length).flatten()


def mask_at_scale(mask: Tensor, scale: float) -> Tensor:
    """Weight of each HOG cell in a stage's loss.

    For scales of 1 and more each patch's mask is repeated over its cells; at ½ a cell covers 2×2 patches and weighs
    the fraction of them that is masked.

    Args:
        mask: float32 [B, L], a square grid of patches row by row.

    Returns: float32 [B, L·scale²], row by row.
    """
    grid_size = int(mask.shape[1] ** 0.5)
    grid = mask.reshape(-1, 1, grid_size, grid_size)
    if scale < 1:
        grid = F.avg_pool2d(grid, int(1 / scale))
    else:
        grid = grid.repeat_interleave(int(scale), dim=2).repeat_interleave(int(scale), dim=3)
    return grid.flatten(1)


def mask_noise(keys: Tensor, num_patches: int) -> Tensor:
    """Uniform noise in [0, 1), the same bits on every device: splitmix64 (Steele et al., OOPSLA 2014).

    Element (b, i) is the top 24 bits, all that fp32 can hold, of the generator's output i when seeded with ``keys[b]``.

    Args:
        keys: int64 [B], distinct for distinct samples.

    Returns: float32 [B, num_patches].
    """
    counter = torch.arange(1, num_patches + 1, dtype=torch.int64, device=keys.device)
    state = keys[:, None] + counter * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    state = state ^ _shift_right(state, 31)
    return _shift_right(state, 40).float() * 2.0**-24


def _signed(bits: int) -> int:
    """The int64 with these 64 bits: torch has no uint64 arithmetic, but int64 multiplies and adds modulo 2^64."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: torch's ``>>`` on int64 copies the sign bit in, so mask it off."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
