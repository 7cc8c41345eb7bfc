"""Colours stand for principal components, with signs that stay, and lie where their patch lies."""

import numpy as np
import torch

from tests.seeing.small_encoder import CONFIG
from trainer.pretrained import build_vit
from trainer.seeing.features import patch_features, principal_components


def test_components_are_those_of_all_patches_of_all_photographs() -> None:
    features = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    found = principal_components(features)
    rows = features.flatten(0, 1).double().numpy()
    left, singular, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert found.values.shape == (3, 4, 4, 3)
    assert np.allclose(found.shares, singular[:3] ** 2 / (singular**2).sum())
    ours = found.values.reshape(48, 3).numpy()
    inside = (ours > 0) & (ours < 1)  # the few at the ends are clipped
    for component in range(3):
        kept = inside[:, component]
        assert abs(np.corrcoef(ours[kept, component], left[kept, component])[0, 1]) > 1 - 1e-6


def test_the_largest_weight_of_a_component_is_positive() -> None:
    rising = torch.linspace(-1, 1, 16)[None, :, None]
    for direction in ([0.1, -0.9, 0.3, 0.2], [-0.1, 0.9, -0.3, -0.2]):
        values = principal_components(rising * torch.tensor(direction)).values[0, ..., 0].flatten()
        rises = (values.diff() >= 0).all()
        assert rises == (direction[1] > 0)
        assert values.max() - values.min() == 1


def test_photographs_without_any_difference_are_drawn_too() -> None:
    found = principal_components(torch.ones(2, 16, 8))
    assert found.values.isfinite().all()
    assert found.shares == [0, 0, 0]


def test_an_odd_patch_is_shown_in_its_place() -> None:
    torch.manual_seed(0)
    vit = build_vit(CONFIG, num_classes=0).eval()
    vit.pos_embed.data.zero_()
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, :, :16, 48:] = torch.randn(3, 16, 16) * 3  # first row, last column
    first = principal_components(patch_features(vit, pixels)).values[0, ..., 0]
    others = first.flatten().tolist()
    odd = others.pop(3)
    assert min(abs(odd - other) for other in others) > 0.5
