"""The matrix products over tiles are the convolutions that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.config import ModelConfig
from trainer.model.decoder import JoinPatches, Stage
from trainer.model.masking import random_masking
from trainer.model.patch_embed import PatchEmbed
from trainer.model.tiles import TileConv2d, TileConvTranspose2d

# Sums of at most 192 products of numbers of the order of 1, added in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_tiles_projected_are_the_convolution(generator: torch.Generator) -> None:
    layer = TileConv2d(3, 5, kernel_size=4, stride=4)
    image = torch.randn(2, 3, 8, 12, generator=generator)
    tiles = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)  # [2, 2, 3, 48]
    expected = F.conv2d(image, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(tiles).permute(0, 3, 1, 2), expected, **TOLERANCE)


def test_expanded_tiles_are_the_transposed_convolution(generator: torch.Generator) -> None:
    layer = TileConvTranspose2d(6, 5, kernel_size=2, stride=2)
    grid = torch.randn(2, 6, 3, 4, generator=generator)
    expected = F.conv_transpose2d(grid, layer.weight, layer.bias, stride=2)
    cells = layer(grid.permute(0, 2, 3, 1)).unflatten(3, (2, 2))  # [2, 3, 4, 2, 2, 5]
    torch.testing.assert_close(cells.permute(0, 5, 1, 3, 2, 4).reshape(2, 5, 6, 8), expected, **TOLERANCE)


def test_expanded_tiles_have_no_other_size() -> None:
    with pytest.raises(ValueError, match="output_size"):
        TileConvTranspose2d(2, 2, kernel_size=2, stride=2)(torch.zeros(1, 2), [3, 3])


def test_joined_patches_are_the_mean_of_four() -> None:
    patches = torch.arange(16.0)[None, :, None]
    assert JoinPatches()(patches).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_only_kept_patches_are_embedded_each_where_it_was(tiny: ModelConfig, generator: torch.Generator) -> None:
    embed = PatchEmbed(tiny)
    pixels = torch.randn(2, 3, tiny.image_size, tiny.image_size, generator=generator)
    kept = random_masking(torch.rand(2, tiny.num_patches, generator=generator), tiny.num_kept).kept
    everywhere = F.conv2d(pixels, embed.proj.weight, embed.proj.bias, stride=tiny.patch_size).flatten(2).transpose(1, 2)
    expected = everywhere.gather(1, kept[:, :, None].expand(-1, -1, tiny.width))
    torch.testing.assert_close(embed(pixels, kept), expected, **TOLERANCE)


@pytest.mark.parametrize("scale", [4.0, 2.0, 1.0, 0.5])
def test_decoder_head_is_the_one_of_convolutions(tiny: ModelConfig, scale: float, generator: torch.Generator) -> None:
    """The same weights as layers over a grid, channels first, from the mixed tokens on."""
    config, batch = tiny.model_copy(update={"patch_size": 4}), 2
    decoder = Stage(config, scale).decoder
    mixed: list[Tensor] = []
    decoder.blocks[-1].register_forward_hook(lambda _module, _inputs, output: mixed.append(output))
    masking = random_masking(torch.rand(batch, config.num_patches, generator=generator), config.num_kept)
    prediction = decoder(torch.randn(batch, 1 + config.num_kept, config.width, generator=generator), masking)
    side = config.grid_size
    grid = decoder.norm(mixed[0])[:, 1:].transpose(1, 2).reshape(batch, config.decoder_dim, side, side)
    for layer in decoder.resize:
        if isinstance(layer, TileConvTranspose2d):
            grid = F.conv_transpose2d(grid, layer.weight, layer.bias, stride=2)
        elif isinstance(layer, JoinPatches):
            grid = F.avg_pool2d(grid, 2)
        else:
            grid = layer(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    expected = F.conv2d(grid, decoder.predict.weight, decoder.predict.bias).flatten(2).transpose(1, 2)
    torch.testing.assert_close(prediction, expected, **TOLERANCE)
