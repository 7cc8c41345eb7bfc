"""What the model promises beyond its numbers: initialisation, dtypes, units, and no waiting for the device."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

Batch = tuple[Tensor, Tensor]


def test_initialisation_follows_the_seed(tiny: ModelConfig) -> None:
    def seeded(seed: int) -> LocalMIM:
        torch.manual_seed(seed)
        return LocalMIM(tiny)

    first, again, other = seeded(0).state_dict(), seeded(0).state_dict(), seeded(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["cls_token"], other["cls_token"])


def test_initialisation_is_xavier_with_zero_biases(tiny: ModelConfig) -> None:
    torch.manual_seed(0)
    model = LocalMIM(tiny.model_copy(update={"embed_dim": 256}))
    projection = model.patch_embed.proj
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for weight, bias in [(layer.weight, layer.bias) for layer in layers] + [(projection.weight, projection.bias)]:
        matrix = weight.flatten(1)
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.95 * bound < matrix.abs().max() <= bound
        assert not bias.any()
    assert 0.015 < model.cls_token.std() < 0.025


def test_every_parameter_has_a_unit(tiny: ModelConfig) -> None:
    model = LocalMIM(tiny.model_copy(update={"stages": [1, 3], "scales": [2.0, 0.5]}))
    units = {name: model.unit_of(name) for name, _ in model.named_parameters()}
    assert set(units.values()) == set(range(model.num_units))
    assert units["cls_token"] == units["patch_embed.proj.weight"] == 0
    assert units["blocks.0.norm1.weight"] == 1
    assert (
        units["stages.0.norm.weight"] == units["stages.0.decoder.mask_token"] == units["blocks.1.attn.qkv.weight"] == 2
    )
    assert units["stages.1.decoder.predict.weight"] == model.depth
    with pytest.raises(KeyError, match=r"head\.weight"):
        model.unit_of("head.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_and_losses_stay_fp32_in_a_low_precision_model(
    tiny: ModelConfig, batch: Batch, dtype: torch.dtype
) -> None:
    model = LocalMIM(tiny)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    full = model.reconstruct(*batch)
    full_loss, _ = model(*batch)
    model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.equal(buffer, exact[name]) for name, buffer in model.named_buffers())
    low = model.reconstruct(*batch)
    for low_stage, full_stage in zip(low.stages, full.stages, strict=True):
        assert torch.equal(low_stage.target, full_stage.target)
        assert low_stage.prediction.dtype == torch.float32
    loss, stage_losses = model(*batch)
    assert loss.dtype == stage_losses.dtype == torch.float32
    # 8 bits of mantissa in the weights and activations, averaged over hundreds of cells.
    assert loss.item() == pytest.approx(full_loss.item(), rel=0.02)
    loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {dtype}


def test_constants_are_not_saved(tiny: ModelConfig) -> None:
    model = LocalMIM(tiny)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_every_parameter_gets_a_gradient(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    loss, _ = model(*batch)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    "shape",
    [
        {"patch_size": 4, "scales": [4.0, 2.0, 1.0, 0.5]},
        {"image_size": 42, "patch_size": 7, "scales": [1.0, 1.0, 1.0, 0.5]},
        {"image_size": 64, "patch_size": 16, "scales": [0.5, 1.0, 4.0, 2.0]},
        {"decoder_depth": 2, "mlp_ratio": 3.0, "hog_bins": 18, "mask_ratio": 0.6},
    ],
    ids=str,
)
def test_predictions_have_the_shape_of_their_targets(tiny: ModelConfig, shape: dict) -> None:
    config = ModelConfig.model_validate(tiny.model_dump() | {"image_size": 32} | shape)
    model = LocalMIM(config)
    images = torch.randint(0, 256, (2, 3, config.image_size, config.image_size), dtype=torch.uint8)
    shown = model.reconstruct(images, torch.rand(2, model.num_patches))
    assert shown.mask.sum(1).tolist() == [config.num_patches - config.num_kept] * 2
    for stage, scale in zip(shown.stages, config.stage_scales, strict=True):
        cells = int((config.grid_size * scale) ** 2)
        assert stage.prediction.shape == stage.target.shape == (2, cells, 3 * config.hog_bins)


def test_masked_pixels_do_not_reach_the_encoder(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    images, noise = batch
    shown = model.reconstruct(images, noise)
    side, patch = tiny.grid_size, tiny.patch_size
    masked = shown.mask.reshape(2, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3).bool()
    altered = model.reconstruct(torch.where(masked, 255 - images, images), noise)
    for before, after in zip(shown.stages, altered.stages, strict=True):
        assert torch.equal(before.prediction, after.prediction)


def test_float_images_are_refused(tiny: ModelConfig, batch: Batch) -> None:
    with pytest.raises(TypeError, match="uint8"):
        LocalMIM(tiny)(batch[0] / 255, batch[1])


def test_step_never_reads_a_value_back_from_the_device(tiny: ModelConfig) -> None:
    """Fake tensors have no values: anything that needs one on the host, such as .item(), raises."""
    with FakeTensorMode():
        model = LocalMIM(tiny)
        model.freeze_prefix(2)
        images = torch.empty(2, 3, tiny.image_size, tiny.image_size, dtype=torch.uint8)
        loss, _ = model(images, torch.empty(2, tiny.num_patches))
        loss.backward()
