"""Cases shared by the model's tests: the recorded ones and a tiny model with four stages."""

import pytest
import torch
from torch import Tensor

from tests.model.golden import GOLDEN_DIR, GoldenCase, read_golden
from trainer.model.config import ModelConfig


@pytest.fixture(scope="session", params=sorted(GOLDEN_DIR.glob("localmim_*.npz")), ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    return read_golden(request.param)


@pytest.fixture
def tiny() -> ModelConfig:
    """Four blocks, a stage on each: HOG cells of 2, 4, 8 and 16 pixels."""
    return ModelConfig(
        image_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=4,
        stages=[0, 1, 2, 3],
        decoder_dim=16,
        decoder_heads=2,
    )


@pytest.fixture
def batch(tiny: ModelConfig) -> tuple[Tensor, Tensor]:
    """Images and masking noise for the tiny model."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, tiny.image_size, tiny.image_size), generator=generator, dtype=torch.uint8)
    return images, torch.rand(2, tiny.num_patches, generator=generator)
