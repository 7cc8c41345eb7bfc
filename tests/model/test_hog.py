"""HOG targets against their definition, one scale and one channel at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.golden import GoldenCase
from trainer.model.hog import hog_targets


def hog_of_one_window(images: Tensor, window: int, bins: int) -> Tensor:
    """The definition, step by step: Sobel convolution, one map per bin, average pooling, L2 norm over the bins."""
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    channels = []
    for channel in images.unbind(1):
        padded = F.pad(channel[:, None], (1, 1, 1, 1), mode="reflect")
        x, y = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
        orientation = (torch.atan2(x, y) / math.pi * bins).floor().remainder(bins)
        magnitude = (x.square() + y.square()).sqrt()
        maps = torch.stack([magnitude * (orientation == k) for k in range(bins)], dim=1)
        channels.append(F.normalize(F.avg_pool2d(maps, window), dim=1, eps=1e-12))
    return torch.cat(channels, dim=1).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("bins", "windows"), [(9, [4, 8, 16, 32]), (18, [16, 32]), (9, [32]), (5, [4, 6, 12])])
def test_shared_histogram_equals_each_scale_on_its_own(bins: int, windows: list[int]) -> None:
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for window, target in zip(windows, hog_targets(images, windows, bins), strict=True):
        expected = hog_of_one_window(images, window, bins)
        # The order of up to 1024 fp32 additions differs; values are at most 1.
        torch.testing.assert_close(target, expected, rtol=0, atol=3e-7)


def test_photograph_in_tiny_cells(golden: GoldenCase) -> None:
    """8-bit images put many pixels exactly on a bin's border: there the order of the Sobel sum is what counts."""
    images = golden.tensors["image_u8"].float() / 255
    (target,) = hog_targets(images, [2], 9)
    same = ((target - hog_of_one_window(images, 2, 9)).abs().amax(2) < 3e-7).float().mean()
    assert same >= 0.999


def test_edge_falls_into_the_bin_of_its_angle() -> None:
    images = torch.zeros(1, 1, 16, 16)
    images[..., 8:, :] = 1.0  # brighter below: no response along x, a negative one along y, angle π, bin 0
    (target,) = hog_targets(images, [16], 9)
    assert torch.equal(target, F.one_hot(torch.tensor([[0]]), 9).float())
    (target,) = hog_targets(images.transpose(2, 3), [16], 9)  # angle -π/2: half-way round, bin 4
    assert torch.equal(target, F.one_hot(torch.tensor([[4]]), 9).float())


@pytest.mark.parametrize("bins", [9, 41, 47, 55, 61])
def test_half_a_turn_is_bin_0_where_division_multiplies_by_the_reciprocal(
    monkeypatch: pytest.MonkeyPatch, bins: int
) -> None:
    """CUDA divides by a Python number so, and in fp32 bins · (1/bins) is below 1 for some numbers of bins."""
    monkeypatch.setattr(Tensor, "div", lambda tensor, number: tensor.mul(1 / torch.tensor(number)))
    monkeypatch.setattr(Tensor, "div_", lambda tensor, number: tensor.mul_(1 / torch.tensor(number)))
    images = torch.zeros(1, 2, 16, 16)
    images[:, 0, 8:] = 1.0  # angle π in the first channel, nothing in the second
    (target,) = hog_targets(images, [16], bins)
    assert torch.equal(target, F.one_hot(torch.tensor([[0]]), 2 * bins).float())


def test_flat_image_has_an_empty_target() -> None:
    (target,) = hog_targets(torch.full((1, 3, 16, 16), 0.3), [8], 9)
    assert torch.equal(target, torch.zeros(1, 4, 27))


def test_no_window_costs_nothing() -> None:
    assert hog_targets(torch.zeros(1, 3, 16, 16), [], 9) == []
