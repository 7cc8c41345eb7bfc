"""What a stage is to predict, or predicts, as a picture: of a model with either target."""

import numpy as np

from trainer.model.config import ModelConfig
from trainer.tracking.hog_picture import draw_hog


def draw_target(cells: np.ndarray, config: ModelConfig, size: int) -> np.ndarray:
    """cells [cells, values of a cell], row by row → grey picture in 0…1, about size × size."""
    if config.target == "hog":
        return draw_hog(cells, config.hog_bins, size)
    return draw_pixels(cells, config.cell_pixels)


def draw_pixels(cells: np.ndarray, side: int) -> np.ndarray:
    """cells [cells, 3·side²] of normalised pixels → grey picture [grid·side, grid·side] in 0…1.

    The colour channels are averaged. Each cell has lost its own brightness and contrast; two deviations below and above
    its mean are black and white."""
    grid = round(cells.shape[0] ** 0.5)
    grey = cells.reshape(grid, grid, 3, side, side).mean(axis=2)
    return np.clip(0.5 + grey.transpose(0, 2, 1, 3).reshape(grid * side, grid * side) / 4, 0, 1)
