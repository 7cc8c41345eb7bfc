"""How the freeze of a run went, and what the model reconstructs."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from trainer.files import replace_file
from trainer.model.config import ModelConfig
from trainer.model.localmim import Reconstruction
from trainer.tracking.target_picture import draw_target


def draw_timeline(events: list[dict[str, Any]], path: Path) -> None:
    """freeze_timeline.png: learning rate per unit, frozen units, optimizer bytes per rank and img/s over the steps."""
    steps = [event for event in events if event["event"] == "step"]
    freezes = [event for event in events if event["event"] == "freeze"]
    x = [event["step"] for event in steps]
    figure = Figure(figsize=(11, 10), layout="constrained")
    rates, frozen, memory, speed = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1.5, 1.5, 1.5])

    units = len(steps[0]["lr"])
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, units))
    for unit in range(units):
        y = [np.nan if event["lr"][unit] is None else event["lr"][unit] for event in steps]
        name = "patch embedding" if unit == 0 else f"block {unit}"
        rates.plot(x, y, color=colours[unit], lw=1.4, label=name)
    rates.set_ylabel("learning rate")
    rates.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    frozen_x, frozen_y = _over_steps(steps, freezes, "frozen_units", lambda event: event["units"][-1] + 1)
    frozen.step(frozen_x, frozen_y, where="post", color="tab:blue")
    frozen.set_ylabel(f"frozen units\nof {units}")
    frozen.set_ylim(-0.3, units + 0.3)
    bytes_x, bytes_y = _over_steps(steps, freezes, "optimizer_bytes", lambda event: event["optimizer_bytes_after"][0])
    memory.step(bytes_x, np.array(bytes_y) / 1e6, where="post", color="tab:red")
    memory.set_ylabel("optimizer state\nMB per rank")
    memory.set_ylim(bottom=0)
    speed.plot(x, [event["images_per_second"] for event in steps], color="tab:green")
    speed.set_ylabel("images / s")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("optimizer step")
    for axis in (rates, frozen, memory, speed):
        for event in freezes:
            axis.axvline(event["step"], color="grey", lw=0.5, ls=":")
        axis.spines[["top", "right"]].set_visible(False)
    for event in freezes:
        for stage in event["stages_removed"]:
            rates.annotate(
                f"stage {stage} removed",
                (event["step"], 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=7,
                va="top",
                ha="right",
            )
    save_figure(figure, path, dpi=110)


def save_figure(figure: Figure, path: Path, *, dpi: int, colours: int | None = None) -> Path:
    """Write a PNG, whole or not at all, and return its path. Raises OSError.

    colours: at most so many, up to 256, chosen to fit; takes a fifth of the bytes where a picture is full of detail."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if colours:
        picture = picture.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with replace_file(path) as stream:
        picture.save(stream, "PNG")
    return path


def _over_steps(
    steps: list[dict], freezes: list[dict], key: str, after_freeze: Callable[[dict], int]
) -> tuple[list[int], list[int]]:
    """A quantity that changes with freezes: a freeze event knows it to the step, log lines only to the interval."""
    points = [(event["step"], event[key]) for event in steps]
    points += [(event["step"], after_freeze(event)) for event in freezes]
    points.sort(key=lambda point: point[0])
    return [p[0] for p in points], [p[1] for p in points]


def draw_reconstructions(
    images: np.ndarray,
    shown: Reconstruction,
    config: ModelConfig,
    path: Path,
    *,
    title: str = "",
    frozen_stages: Collection[int] = (),
) -> None:
    """reconstructions.png: `reconstruction_figure` in a file, fine enough for the strokes of 56×56 cells."""
    figure = reconstruction_figure(images, shown, config, title, frozen_stages)
    save_figure(figure, path, dpi=200, colours=256)


def reconstruction_figure(
    images: np.ndarray, shown: Reconstruction, config: ModelConfig, title: str, frozen_stages: Collection[int]
) -> Figure:
    """A row per photograph: image, masked image, then target and prediction of each stage.

    Predictions are drawn where patches are masked; elsewhere, where no loss asks for any, the target is shown in blue.
    images: uint8 [B, 3, H, W], the pixels that `shown` was computed from. frozen_stages: marked as such."""
    blocks, scales = config.stage_blocks, config.stage_scales
    columns = 2 + 2 * len(shown.stages)
    figure = Figure(figsize=(1.75 * columns, 1.85 * len(images) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(images), columns, squeeze=False)
    grid, patch = config.grid_size, config.patch_size
    for row, image in enumerate(images):
        picture = image.transpose(1, 2, 0)
        mask = shown.mask[row].reshape(grid, grid).cpu().numpy().repeat(patch, 0).repeat(patch, 1)[..., None]
        axes[row, 0].imshow(picture)
        axes[row, 1].imshow(np.where(mask > 0, 110, picture).astype(np.uint8))
        for column, stage in enumerate(shown.stages):
            target, prediction = (
                draw_target(cells[row].float().cpu().numpy(), config, 2 * config.image_size)
                for cells in (stage.target, stage.prediction)
            )
            axes[row, 2 + 2 * column].imshow(target, cmap="gray", vmin=0, vmax=1)
            axes[row, 3 + 2 * column].imshow(_visible_in_blue(prediction, target, mask))
    titles = ["photograph", f"masked {config.mask_ratio:.0%}"]
    for stage in shown.stages:
        cells, block = round(grid * scales[stage.stage]), blocks[stage.stage] + 1
        frozen = ", frozen" if stage.stage in frozen_stages else ""
        titles += [f"block {block}{frozen}: target\n{cells}×{cells} cells"]
        titles += [f"block {block}{frozen}: predicted\n(blue: visible)"]
    for axis, words in zip(axes[0], titles, strict=True):
        axis.set_title(words, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def _visible_in_blue(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The prediction where the mask is 1, the target in blue where it is 0: [H, W], [H, W], [h, w, 1] → [H, W, 3]."""
    height, width = prediction.shape
    rows, columns = np.arange(height) * mask.shape[0] // height, np.arange(width) * mask.shape[1] // width
    masked = mask[rows[:, None], columns[None, :]]
    return masked * prediction[..., None] + (1 - masked) * target[..., None] * np.array([0.25, 0.5, 1.0])
