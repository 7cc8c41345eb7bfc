"""Histograms of oriented gradients as pictures: in each cell one stroke per bin, along the edge that it stands for, as
bright as the bin stands out from its cell's average."""

import numpy as np


def draw_hog(hog: np.ndarray, bins: int, size: int) -> np.ndarray:
    """hog [cells, 3·bins] (cells row-major, colour channels one after another) → grey picture [size, size] in 0…1.

    The three colour channels are averaged: an edge shows whatever its colour."""
    cells = hog.shape[0]
    grid = round(cells**0.5)
    pixels = max(size // grid, 5)
    strength = hog.reshape(cells, 3, bins).mean(axis=1)
    strength = np.clip(strength - strength.mean(axis=1, keepdims=True), 0, None)  # no direction, no stroke
    cell_pictures = np.einsum("cb,byx->cyx", strength, _strokes(bins, pixels))
    picture = cell_pictures.reshape(grid, grid, pixels, pixels).transpose(0, 2, 1, 3).reshape(grid * pixels, -1)
    return picture / max(picture.max(), 1e-12)


def _strokes(bins: int, pixels: int) -> np.ndarray:
    """[bins, pixels, pixels]: an antialiased line through the middle of a cell for the centre of each bin.

    A bin holds the angle θ = atan2(gx, gy), so the gradient is (sin θ, cos θ) in (x right, y down) and the edge, at
    right angles to it, runs along (cos θ, -sin θ)."""
    theta = (np.arange(bins) + 0.5) * np.pi / bins
    axis = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    normal = [f[:, None, None] for f in (np.sin(theta), np.cos(theta))]
    distance = np.abs(x * normal[0] + y * normal[1])
    along = np.abs(x * normal[1] - y * normal[0])
    width = max(0.12, 1.2 / pixels)
    return np.clip(1.5 - distance / width, 0, 1) * (along <= 0.95)
