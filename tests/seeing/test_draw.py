"""The pictures of a pre-trained model, as files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.seeing.small_encoder import CONFIG, small_images, small_pretrained
from trainer.seeing.draw import draw_pictures, frozen_stages, mask_keys


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_kind_is_drawn_without_a_trace_in_the_random_state(tmp_path: Path) -> None:
    pretrained, images = small_pretrained(), small_images(2)
    before = torch.get_rng_state()
    drawn = list(draw_pictures(pretrained, images, tmp_path, attention_blocks=[0, 3]))
    assert torch.equal(torch.get_rng_state(), before)
    assert [path.name for path in drawn] == [
        "reconstructions.png", "features.png", "attention_block_01.png", "attention_block_04.png"]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(drawn)
    for path in drawn:
        assert pixels(path).std() > 10
        assert path.stat().st_size < 1_000_000
    assert not (pixels(drawn[2]) == pixels(drawn[3])).all()


def test_the_same_weights_and_seed_give_the_same_picture_and_another_seed_another_mask(tmp_path: Path) -> None:
    pretrained, images = small_pretrained(), small_images(1)
    found = []
    for seed in (0, 0, 5):
        (path,) = draw_pictures(pretrained, images, tmp_path, kinds=["reconstructions"], mask_seed=seed)
        found.append(pixels(path))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()
    keys = torch.cat([mask_keys(16, seed) for seed in (0, 1, 2**31 - 1)])
    assert len(keys.unique()) == 48


def test_an_encoder_without_decoders_shows_the_rest(tmp_path: Path) -> None:
    encoder = replace(small_pretrained(), full=None)
    drawn = list(draw_pictures(encoder, small_images(1), tmp_path, kinds=["attention", "features"]))
    assert [path.name for path in drawn] == ["features.png", "attention_block_04.png"]


def test_frozen_stages_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []
    monkeypatch.setattr("trainer.seeing.draw.draw_reconstructions", lambda *_, **named: marked.append(named))
    pretrained, images = small_pretrained(), small_images(1)
    for about in (pretrained.about, {}):
        list(draw_pictures(replace(pretrained, about=about), images, tmp_path, kinds=["reconstructions"]))
    assert [(each["title"], each["frozen_stages"]) for each in marked] == [
        ("runs/small, step 7", {0}), ("runs/small, step 7", set())]  # fmt: skip


def test_a_stage_is_frozen_with_the_block_that_it_reads() -> None:
    assert [frozen_stages(CONFIG, units) for units in range(5)] == [set(), set(), set(), {0}, {0}]  # stages 1 and 3
