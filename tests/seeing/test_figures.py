"""Panels hold what their titles say, and can be read."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tests.seeing.small_encoder import CONFIG, small_images, small_pretrained
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.seeing.features import Components
from trainer.seeing.pictures import attention_figure, feature_figure
from trainer.tracking.pictures import reconstruction_figure


def panels(figure: Figure) -> NDArray[np.object_]:
    rows = figure.axes[0].get_gridspec().nrows
    return np.array(figure.axes, dtype=object).reshape(rows, -1)


def content(axis) -> NDArray:
    (image,) = axis.images
    return np.asarray(image.get_array())


def assert_legible(figure: Figure) -> None:
    """No title lies over another or leaves the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [axis.title for axis in panels(figure)[0]] + ([figure._suptitle] if figure._suptitle.get_text() else [])
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number]), texts[number].get_text()


def photographs(count: int) -> NDArray[np.uint8]:
    return small_images(count).permute(0, 2, 3, 1).numpy()


def test_feature_panels() -> None:
    values = torch.rand(2, 4, 4, 3)
    figure = feature_figure(photographs(2), Components(values, [0.5, 0.25, 0.05]), "runs/x, step 7: components")
    axes = panels(figure)
    assert axes.shape == (2, 5)
    for row in range(2):
        assert (content(axes[row, 0]) == photographs(2)[row]).all()
        assert np.allclose(content(axes[row, 1]), values[row])
        for component in range(3):
            assert np.allclose(content(axes[row, 2 + component]), values[row, ..., component])
    assert [axis.get_title() for axis in axes[0, 2:]] == [
        "component 1 (red)\n50% of the variance",
        "component 2 (green)\n25% of the variance",
        "component 3 (blue)\n5% of the variance",
    ]
    assert_legible(figure)


def test_attention_panels() -> None:
    maps = torch.full((2, 16, 16), 0.01)
    for head in range(16):
        maps[:, head, head] = 0.5  # head 7 looks at the patch of row 1, column 2, and so on
    figure = attention_figure(photographs(2), maps, "runs/x, step 7: the class token's attention, block 12")
    axes = panels(figure)
    assert axes.shape == (2, 18)
    assert [axis.get_title() for axis in axes[0, :3]] == ["photograph", "mean", "head 1"]
    for head in range(16):
        peak = np.unravel_index(content(axes[1, 2 + head]).argmax(), (4, 4))
        assert peak == (head // 4, head % 4)
        assert axes[1, 2 + head].texts[0].get_text() == "8.5"  # 0.5 of 17 tokens
    assert np.allclose(content(axes[0, 1]), maps[0].mean(0).reshape(4, 4))
    assert_legible(figure)


@pytest.mark.parametrize("frozen", [set(), {0}])
def test_reconstruction_panels(frozen: set[int]) -> None:
    pretrained, images = small_pretrained(), small_images(2)
    model = LocalMIM(CONFIG)
    model.load_state_dict(pretrained.full)
    shown = model.reconstruct(images, mask_noise(torch.arange(2), 16))
    axes = panels(figure := reconstruction_figure(images.numpy(), shown, CONFIG, pretrained.source, frozen))
    assert axes.shape == (2, 6)
    for row in range(2):
        masked = shown.mask[row].reshape(4, 4).numpy().repeat(16, 0).repeat(16, 1) > 0
        assert masked.mean() == 0.75
        seen, photograph = content(axes[row, 1]), images[row].permute(1, 2, 0).numpy()
        assert (seen[masked] == 110).all()
        assert (seen[~masked] == photograph[~masked]).all()
        predicted, target = content(axes[row, 3]), content(axes[row, 2])
        masked = masked.repeat(2, 0).repeat(2, 1)
        assert (predicted[masked] == predicted[masked][:, :1]).all(), "grey"
        assert not np.allclose(predicted[masked][:, 0], target[masked])
        assert np.allclose(predicted[~masked], target[~masked][:, None] * [0.25, 0.5, 1])
    mark = ", frozen" if frozen else ""
    assert axes[0, 2].get_title() == f"block 2{mark}: target\n8×8 cells"
    assert axes[0, 3].get_title() == f"block 2{mark}: predicted\n(blue: visible)"
    assert axes[0, 4].get_title() == "block 4: target\n4×4 cells"
    assert figure._suptitle.get_text() == "runs/small, step 7"
    assert_legible(figure)
