"""Feature colours and attention maps beside their photographs, a row for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from trainer.seeing.features import Components

_COLOURS = ("red", "green", "blue")


def feature_figure(photographs: NDArray[np.uint8], components: Components, title: str) -> Figure:
    """Photograph, its patches with three components as red, green and blue, then each component alone in grey.

    photographs: [B, H, W, 3]."""
    columns = ["photograph", "all three\nas colours"]
    columns += [
        f"component {number} ({colour})\n{share:.0%} of the variance"
        for number, (colour, share) in enumerate(zip(_COLOURS, components.shares, strict=True), start=1)
    ]
    figure, axes = _grid(len(photographs), columns, title, panel=1.9)
    for row, (photograph, values) in enumerate(zip(photographs, components.values.numpy(), strict=True)):
        axes[row, 0].imshow(photograph)
        axes[row, 1].imshow(values)
        for component in range(len(components.shares)):
            axes[row, 2 + component].imshow(values[..., component], cmap="gray", vmin=0, vmax=1)
    return figure


def attention_figure(photographs: NDArray[np.uint8], maps: Tensor, title: str) -> Figure:
    """Photograph, the mean over the heads, then each head. photographs: [B, H, W, 3], maps: [B, heads, L].

    Each map has the whole range of colours from 0 to its own peak; the number in its corner is the peak in even
    shares, that is as a multiple of what each token would get from a class token that looks everywhere alike."""
    batch, heads, patches = maps.shape
    grid = round(patches**0.5)
    columns = ["photograph", "mean", *(f"head {head}" for head in range(1, heads + 1))]
    even_share = 1 / (1 + patches)
    figure, axes = _grid(batch, columns, f"{title}; numbers: the peak, in even shares of 1/{1 + patches}", panel=1.25)
    for row, photograph in enumerate(photographs):
        axes[row, 0].imshow(photograph)
        shown = [maps[row].mean(dim=0), *maps[row]]
        for axis, one in zip(axes[row, 1:], shown, strict=True):
            axis.imshow(one.reshape(grid, grid).numpy(), cmap="inferno", vmin=0)
            axis.text(
                0.04, 0.04, f"{one.max().item() / even_share:.1f}", transform=axis.transAxes, color="white", fontsize=7,
                bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0},
            )  # fmt: skip
    return figure


def _grid(rows: int, columns: Sequence[str], title: str, panel: float) -> tuple[Figure, NDArray[Any]]:
    """A figure, with a title for the whole and one for each column, and its panels, `panel` inches wide."""
    figure = Figure(figsize=(panel * len(columns), panel * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes
