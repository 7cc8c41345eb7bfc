"""Every nonsensical model is refused with a message that says what to change."""

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.model.config import ModelConfig


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads", "stages"),
    [
        ("tiny", 192, 12, 3, [1, 3, 9, 11]),
        ("small", 384, 12, 6, [1, 3, 9, 11]),
        ("base", 768, 12, 12, [1, 3, 9, 11]),
        ("large", 1024, 24, 16, [1, 3, 21, 23]),
        ("huge", 1280, 32, 16, [1, 3, 29, 31]),
    ],
)
def test_sizes(size: Any, width: int, depth: int, heads: int, stages: list[int]) -> None:
    config = ModelConfig(size=size)
    assert (config.width, config.num_blocks, config.heads, config.num_units) == (width, depth, heads, depth + 1)
    assert config.stage_blocks == stages
    assert (config.num_patches, config.num_kept, config.hog_windows) == (196, 49, [4, 8, 16, 32])


def test_other_patch_sizes() -> None:
    config = ModelConfig(image_size=224, patch_size=14, scales=[2, 2, 1, 0.5])
    assert (config.num_patches, config.num_kept, config.hog_windows) == (256, 64, [7, 7, 14, 28])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16: take 224"),
        ({"image_size": 16}, "keeps 0 of 1 patches"),
        ({"mask_ratio": 0.999}, "keeps 0 of 196 patches"),
        ({"mask_ratio": 0.0}, "greater than 0"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"patch_size": 14}, "scale 4 needs HOG cells of patch_size/scale = 3.5 pixels"),
        ({"patch_size": 32}, "odd grid of 7 patches"),
        ({"num_heads": 7}, "num_heads 7 does not divide embed_dim 768"),
        ({"decoder_heads": 7}, "decoder_heads 7 does not divide decoder_dim 256"),
        ({"embed_dim": 30, "num_heads": 2}, "embed_dim 30 is not a multiple of 4"),
        ({"decoder_dim": 30, "decoder_heads": 2}, "decoder_dim 30 is not a multiple of 4"),
        ({"depth": 6}, r"stages \[1, 3, 3, 5\] must rise without repeats \(the default for 6 blocks"),
        ({"stages": [3, 1, 9, 11]}, "must rise without repeats"),
        ({"stages": [1, 3, 9, 12]}, "must lie between 0 and 11"),
        ({"stages": [-1, 3, 9, 11]}, "must lie between 0 and 11"),
        ({"stages": [1, 3, 9, 10]}, "the blocks above 10 would get no gradient"),
        ({"stages": []}, "stages is empty"),
        ({"stages": [3, 11]}, "2 stages .* but 4 scales"),
        ({"scales": [4, 2, 1]}, "4 stages .* but 3 scales"),
        ({"scales": [8, 2, 1, 0.5]}, "scale 8.0 has no decoder head: take 4, 2, 1 or 0.5"),
        ({"widht": 3}, "Extra inputs are not permitted"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**options)
