"""Pictures show what they claim to show."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.tracking.hog_picture import draw_hog
from trainer.tracking.pictures import draw_reconstructions, draw_timeline
from trainer.tracking.target_picture import draw_target


def _stripes(horizontal: bool) -> torch.Tensor:
    wave = (np.sin(np.arange(64) / 2.5) * 100 + 128).astype(np.uint8)
    image = np.tile(wave[:, None] if horizontal else wave[None, :], (1, 64) if horizontal else (64, 1))
    return torch.from_numpy(np.stack([image] * 3))[None]


def test_strokes_run_along_the_edges_of_the_photograph():
    config = ModelConfig(
        image_size=64, patch_size=16, embed_dim=16, depth=4, num_heads=2, stages=[2, 3], scales=[2, 1], decoder_dim=16
    )
    model = LocalMIM(config)
    for horizontal in (True, False):
        shown = model.reconstruct(_stripes(horizontal), torch.rand(1, 16))
        picture = draw_hog(shown.stages[0].target[0].numpy(), config.hog_bins, 128)
        # along a stroke brightness changes slowly, across it fast
        along_rows, along_columns = np.abs(np.diff(picture, axis=1)).mean(), np.abs(np.diff(picture, axis=0)).mean()
        assert (along_columns > 2 * along_rows) if horizontal else (along_rows > 2 * along_columns)


def test_a_reconstruction_picture_has_a_row_per_photograph(tmp_path):
    config = ModelConfig(
        image_size=64, patch_size=16, embed_dim=16, depth=4, num_heads=2, stages=[0, 3], scales=[1, 0.5], decoder_dim=16
    )
    images = torch.cat([_stripes(True), _stripes(False)])
    path = tmp_path / "r.png"
    for target in ("hog", "pixels"):
        config = config.model_copy(update={"target": target})
        draw_reconstructions(images.numpy(), LocalMIM(config).reconstruct(images, torch.rand(2, 16)), config, path)
        assert np.asarray(Image.open(path).convert("RGB")).std() > 10


def test_pixels_are_drawn_where_they_belong():
    config = ModelConfig(
        image_size=64, patch_size=16, embed_dim=16, depth=4, num_heads=2, stages=[2, 3], scales=[2, 1], decoder_dim=16,
        target="pixels",
    )  # fmt: skip
    photograph = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    photograph[:, :, 20:28, 40:44] = 255  # a bright bar in one cell of 16 pixels
    shown = LocalMIM(config).reconstruct(photograph, torch.rand(1, 16))
    for stage, side in zip(shown.stages, (64, 32), strict=True):
        picture = draw_target(stage.target[0].numpy(), config, 128)
        assert picture.shape == (side, side)
        y, x = np.unravel_index(picture.argmax(), picture.shape)
        assert 20 <= y * 64 / side < 28
        assert 40 <= x * 64 / side < 44
        assert picture[0, 0] == pytest.approx(0.5, abs=1e-3)  # a flat cell


def test_a_timeline_is_drawn_with_and_without_freezes(tmp_path):
    def step(number, lr):
        return {"event": "step", "step": number, "lr": lr, "frozen_units": lr.count(None), "optimizer_bytes": 12,
                "images_per_second": 3.0}  # fmt: skip

    freeze = {"event": "freeze", "step": 2, "units": [0], "stages_removed": [0], "optimizer_bytes_after": [6, 6]}
    draw_timeline([step(2, [0.1, 0.2])], tmp_path / "a.png")
    draw_timeline([step(2, [0.1, 0.2]), freeze, step(4, [None, 0.1])], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert (tmp_path / "b.png").stat().st_size > 5000
