"""Masks are a pure function of the samples' keys."""

import numpy as np
import torch
import torch.nn.functional as F

from trainer.model.masking import mask_at_scale, mask_noise, random_masking

MASK_64 = 2**64 - 1


def splitmix64(key: int, index: int) -> int:
    """Output ``index`` of the generator seeded with ``key``, in Python's unbounded integers."""
    state = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
    return state ^ (state >> 31)


def test_splitmix64_reference_vector() -> None:
    """The published first outputs of the generator with seed 1234567."""
    assert [splitmix64(1234567, index) for index in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_noise_is_splitmix64_bit_for_bit() -> None:
    keys = [0, 1, 1234567, -1, -(2**63), 2**63 - 1]
    expected = [
        [np.float32(splitmix64(key & MASK_64, i) >> 40) * np.float32(2**-24) for i in range(300)] for key in keys
    ]
    noise = mask_noise(torch.tensor(keys), 300)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, torch.from_numpy(np.array(expected, dtype=np.float32)))


def test_noise_depends_on_the_key_alone() -> None:
    keys = torch.arange(64) * 7919
    noise = mask_noise(keys, 196)
    assert torch.equal(mask_noise(keys[[5, 40]], 196), noise[[5, 40]])
    assert torch.equal(mask_noise(keys, 50), noise[:, :50])


def test_noise_is_uniform_and_unlike_from_key_to_key() -> None:
    noise = mask_noise(torch.arange(4096), 196).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    # 5 standard deviations of a chi-squared with 255 degrees of freedom over 800 k draws in 256 bins.
    counts = torch.histc(noise, bins=256, min=0, max=1)
    chi_squared = ((counts - counts.mean()).square() / counts.mean()).sum()
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5
    # Neighbouring keys and neighbouring patches: correlations within 5 / sqrt(n).
    centred = noise - 0.5
    assert abs((centred[1:] * centred[:-1]).mean() * 12) < 5 / (4095 * 196) ** 0.5
    assert abs((centred[:, 1:] * centred[:, :-1]).mean() * 12) < 5 / (4096 * 195) ** 0.5
    assert len({tuple(row) for row in random_masking(noise, 49).kept.tolist()}) == 4096


def test_smallest_noise_is_kept_and_ties_go_to_the_earlier_patch() -> None:
    masking = random_masking(torch.tensor([[0.5, 0.1, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0]]), num_kept=2)
    assert masking.kept.tolist() == [[1, 3], [0, 1]]
    assert masking.mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]


def test_what_is_seen_goes_back_to_its_place() -> None:
    noise = mask_noise(torch.arange(8), 49)
    masking = random_masking(noise, num_kept=12)
    seen = F.pad(noise.gather(1, masking.kept), (1, 0), value=2.0)  # 2 for the class token
    whole = torch.zeros(8 * 50).index_copy(0, masking.seen, seen.flatten()).reshape(8, 50)
    assert torch.equal(whole[:, 0], torch.full((8,), 2.0))
    assert torch.equal(whole[:, 1:], noise * (1 - masking.mask))


def test_mask_is_repeated_over_fine_cells_and_averaged_over_coarse_ones() -> None:
    mask = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert mask_at_scale(mask, 1).tolist() == [[1, 0, 0, 0]]
    assert mask_at_scale(mask, 2).reshape(4, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask_at_scale(mask, 0.5).tolist() == [[0.25]]
