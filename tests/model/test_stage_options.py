"""What stages may be given: weights, every block, pixels as their target. And that without these nothing changes."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.model.pixel_targets import pixel_targets

Batch = tuple[Tensor, Tensor]


def gradients(model: LocalMIM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_without_weights_the_loss_and_every_gradient_keep_their_bits(tiny: ModelConfig, batch: Batch) -> None:
    """Of the plain sum of the stage losses, written out here as it was before there were weights."""
    model = LocalMIM(tiny)
    assert tiny.stage_weights_at(0.5) is None
    shown = model._reconstruct(*batch)
    plain = torch.stack([model._stage_loss(stage, shown.mask) for stage in shown.stages]).sum()
    expected = gradients(model, plain)
    for weights in (None, [1.0, 1.0, 1.0, 1.0]):
        loss, _ = model(*batch, weights)
        assert torch.equal(loss, plain)
        found = gradients(model, loss)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("frozen_units", [0, 2])
def test_weights_weigh_the_loss_and_not_what_is_told_of_each_stage(
    tiny: ModelConfig, batch: Batch, frozen_units: int
) -> None:
    model, weights = LocalMIM(tiny), [3.0, 0.5, 0.0, 2.0]
    model.freeze_prefix(frozen_units)
    _, losses = model(*batch)
    loss, told = model(*batch, weights)
    assert torch.equal(told, losses)
    live = [weights[stage] for stage in model.live_stages]
    assert loss.item() == pytest.approx(sum(w * value.item() for w, value in zip(live, losses, strict=True)))
    found = gradients(model, loss)
    assert not found["stages.2.decoder.predict.weight"].any()
    single = gradients(model, model(*batch, [0.0, 0.0, 0.0, 1.0])[0])
    name = "stages.3.decoder.predict.weight"
    torch.testing.assert_close(found[name], 2 * single[name])


def test_weights_go_in_a_straight_line_from_the_start_to_the_end_of_the_run(tiny: ModelConfig) -> None:
    def at(progress: float, **weights: list[float]) -> list[float] | None:
        return ModelConfig.model_validate(tiny.model_dump() | weights).stage_weights_at(progress)

    ramp = {"stage_weights": [1.0, 1.0, 0.0, 0.0], "stage_weights_end": [0.0, 1.0, 1.0, 2.0]}
    assert at(0.0, **ramp) == ramp["stage_weights"]
    assert at(0.25, **ramp) == [0.75, 1.0, 0.25, 0.5]
    assert at(1.0, **ramp) == ramp["stage_weights_end"]
    assert at(0.5, stage_weights_end=[0.0, 0.0, 0.0, 3.0]) == [0.5, 0.5, 0.5, 2.0]
    fixed = [0.3, 0.3, 0.1, 0.7]
    assert at(0.37, stage_weights=fixed) == fixed


def test_every_block_can_feed_a_stage(tiny: ModelConfig) -> None:
    deep = ModelConfig.model_validate(tiny.model_dump() | {"depth": 12, "stages": "every"})
    assert deep.stage_blocks == list(range(12))
    assert deep.stage_scales == [4.0] * 3 + [2.0] * 3 + [1.0] * 3 + [0.5] * 3
    odd = ModelConfig.model_validate(tiny.model_dump() | {"depth": 7, "stages": "every"})
    assert all(a >= b for a, b in pairwise(odd.stage_scales))
    assert set(odd.stage_scales) == {4.0, 2.0, 1.0, 0.5}
    chosen = ModelConfig.model_validate(tiny.model_dump() | {"depth": 3, "stages": "every", "scales": [1, 1, 1]})
    assert chosen.stage_scales == [1, 1, 1]
    model = LocalMIM(odd)
    model.freeze_prefix(3)
    assert model.live_stages == [2, 3, 4, 5, 6]
    assert {model.unit_of(f"stages.{stage}.norm.weight") for stage in range(7)} == set(range(1, 8))


@pytest.mark.parametrize(("windows", "side"), [([4, 8, 16, 32], 4), ([16], 16), ([8, 16], 8), ([7, 14], 7)])
def test_pixel_targets_are_each_cells_own_normalised_pixels(windows: list[int], side: int) -> None:
    size = 2 * max(windows)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    for window, target in zip(windows, pixel_targets(images, windows, side), strict=True):
        cells, step = size // window, window // side
        assert target.shape == (2, cells**2, 3 * side**2)
        for row, column in ((0, 0), (cells - 1, 0), (0, cells - 1)):
            values = torch.stack([
                images[1, channel, y : y + step, x : x + step].mean()
                for channel in range(3)
                for y in range(row * window, (row + 1) * window, step)
                for x in range(column * window, (column + 1) * window, step)
            ])  # fmt: skip
            expected = (values - values.mean()) / (values.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(target[1, row * cells + column], expected, rtol=1e-5, atol=1e-5)


def test_a_flat_cell_is_predicted_as_nothing() -> None:
    (target,) = pixel_targets(torch.full((1, 3, 16, 16), 0.3), [8], 4)
    assert target.abs().max() < 1e-3


@pytest.mark.slow
def test_a_model_of_pixels_learns_them(tiny: ModelConfig, batch: Batch) -> None:
    config = ModelConfig.model_validate(tiny.model_dump() | {"target": "pixels"})
    assert (config.cell_pixels, config.cell_values) == (2, 12)
    torch.manual_seed(0)
    model = LocalMIM(config)
    shown = model.reconstruct(*batch)
    for stage, cells in zip(shown.stages, (256, 64, 16, 4), strict=True):
        assert stage.prediction.shape == stage.target.shape == (2, cells, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, _ = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert isinstance(model.stages[0], nn.Module)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stage_weights": [1.0, 1.0]}, "stage_weights .*give one weight for each of the 4 stages"),
        ({"stage_weights_end": [1.0, 1.0, 1.0]}, "stage_weights_end .*give one weight for each of the 4"),
        ({"stage_weights": [1.0, -1.0, 1.0, 1.0]}, "no weight may be negative"),
        ({"stage_weights": [0.0, 0.0, 0.0, 0.0]}, "one must be above 0"),
        ({"stage_weights": [1.0, 1.0, 1.0, 0.0]}, "the last stage's weight is 0 at the end"),
        ({"stage_weights_end": [1.0, 1.0, 1.0, 0.0]}, "the last stage's weight is 0 at the end"),
        ({"stages": "all"}, "every"),
        ({"stages": "every", "scales": [1.0]}, "4 stages .*1 scales"),
        ({"target": "depth"}, "'hog' or 'pixels'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny: ModelConfig, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig.model_validate(tiny.model_dump() | options)
