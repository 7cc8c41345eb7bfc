"""Histograms of oriented gradients: what the stages predict.

The gradients and their histogram are computed once per step at a cell size that divides every live stage's, and pooled
from there. Treating each scale and colour channel apart gives the same numbers at many times the cost.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def hog_targets(images: Tensor, windows: Sequence[int], bins: int) -> list[Tensor]:
    """HOG of each colour channel in cells of several sizes (LocalMIM, arXiv 2303.05251).

    A pixel adds its gradient's magnitude to the bin of its orientation, ``floor(angle/π · bins) mod bins``; a cell is
    the mean over its pixels, L2-normalised over the bins.

    On CUDA the histogram is summed by atomics, whose order may change the last bit of a target from run to run;
    ``torch.use_deterministic_algorithms(True)`` fixes the order.

    Args:
        images: float32 [B, C, H, W], normalised.
        windows: cell widths in pixels, each dividing H and W.

    Returns: for each window float32 [B, cells, C·bins], cells row by row, channels ordered channel by channel.
    """
    if not windows:
        return []
    base = math.gcd(*windows)
    histogram = _cell_sums(*_magnitude_and_bin(images, bins), base, bins)
    return [_normalised_cells(histogram, window // base) for window in windows]


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Responses of [[1,0,-1],[2,0,-2],[1,0,-1]] and its transpose on the image reflected by one pixel at its border.

    Written as sums in the order in which a convolution adds its taps, because the order is part of the result: on 8-bit
    images a great many pixels have no gradient along one axis, their angle sits exactly on the border between the first
    and the last bin, and the last bit of the sum decides. Element-wise sums also keep TF32 out. In place, because on a
    CPU the temporaries cost more than the additions.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")

    def tap(row: int, column: int) -> Tensor:
        return padded[..., row : row + height, column : column + width]

    horizontal = tap(0, 0) - tap(0, 2)
    horizontal.add_(tap(1, 0), alpha=2).sub_(tap(1, 2), alpha=2).add_(tap(2, 0)).sub_(tap(2, 2))
    vertical = tap(0, 0).add(tap(0, 1), alpha=2)
    vertical.add_(tap(0, 2)).sub_(tap(2, 0)).sub_(tap(2, 1), alpha=2).sub_(tap(2, 2))
    return horizontal, vertical


def _magnitude_and_bin(images: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Gradient magnitude (float32) and orientation bin (int64), both of the shape of ``images``."""
    horizontal, vertical = _sobel(images)
    magnitude = horizontal.square().add_(vertical.square()).sqrt_()
    turned = torch.atan2(horizontal, vertical).div_(math.pi)  # in half turns, from -1 to 1
    # Modulo bins, by whole half turns rather than by a division: CUDA divides by a number by multiplying with its
    # reciprocal, and in fp32 41 · (1/41) is below 1. What is below 1, times bins and rounded, stays below bins.
    turned = turned.mul(bins).floor_().sub_(turned.floor_(), alpha=bins)
    return magnitude, turned.long()


def _cell_sums(magnitude: Tensor, orientation: Tensor, cell: int, bins: int) -> Tensor:
    """Magnitudes summed by cell, channel and bin: [B, H/cell, W/cell, C, bins].

    In that order, because pooling and the targets can then read whole cells at a time. Changes ``orientation``.
    """
    batch, channels, height, width = magnitude.shape
    rows, columns = height // cell, width // cell
    row = torch.arange(height, device=magnitude.device) // cell
    column = torch.arange(width, device=magnitude.device) // cell
    channel = torch.arange(channels, device=magnitude.device)
    first_bin = ((row[:, None] * columns + column) * channels + channel[:, None, None]) * bins
    sums = magnitude.new_zeros(batch, rows * columns * channels * bins)
    sums.scatter_add_(1, orientation.add_(first_bin).flatten(1), magnitude.flatten(1))
    return sums.reshape(batch, rows, columns, channels, bins)


def _normalised_cells(histogram: Tensor, factor: int) -> Tensor:
    """Join factor×factor cells, normalise each over its bins, and lay them out as [B, cells, C·bins].

    Sums and means serve alike: their ratio is a constant, which the normalisation removes.
    """
    batch, rows, columns, channels, bins = histogram.shape
    cells = histogram.flatten(3)
    if factor > 1:
        cells = F.avg_pool2d(cells.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)  # channels last, as it lies
    cells = cells.reshape(batch, rows * columns // factor**2, channels, bins)
    return F.normalize(cells, dim=-1, eps=1e-12).flatten(2)
