"""The model computes what the published LocalMIM code computed, number by number, on every recording in $GOLDEN_DIR."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.model.golden import GOLDEN_DIR, GoldenCase
from trainer.model import localmim
from trainer.model.hog import hog_targets
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_at_scale, random_masking

# fp32 on both sides, but matmuls of other shapes and orders than the published ones.
RELATIVE = 1e-4


def test_recordings_are_there() -> None:
    assert list(GOLDEN_DIR.glob("localmim_*.npz")), f"no localmim_*.npz in {GOLDEN_DIR}"


def assert_close(ours: Tensor, recorded: Tensor, name: str) -> None:
    scale = recorded.abs().max().item()
    torch.testing.assert_close(
        ours, recorded.to(ours.dtype), rtol=RELATIVE, atol=RELATIVE * scale, msg=lambda text: f"{name}: {text}"
    )


@contextmanager
def given_targets(model: LocalMIM, golden: GoldenCase) -> Iterator[None]:
    """Everything downstream is compared on the recorded targets, so that a pixel on a bin's border cannot blur it."""
    targets = golden.by_stage("target")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localmim, "hog_targets", lambda *_: [targets[stage] for stage in model.live_stages])
        yield


def gradients(model: LocalMIM, golden: GoldenCase) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage losses, and the gradients of their sum by parameter; no entry where there is none."""
    with given_targets(model, golden):
        loss, stage_losses = model(golden.tensors["image_u8"], golden.tensors["noise"])
    loss.backward()
    return stage_losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_targets(golden: GoldenCase) -> None:
    model = LocalMIM(golden.config)
    pixels = (golden.tensors["image_u8"].float() / 255 - model.mean) / model.std
    targets = hog_targets(pixels, golden.config.hog_windows, golden.config.hog_bins)
    differences = [(t - r).abs().amax(2).flatten() for t, r in zip(targets, golden.by_stage("target"), strict=True)]
    # A pixel whose angle lies on a bin's border may fall either way with the last bit of the convolution.
    assert (torch.cat(differences) < 1e-5).float().mean() >= 0.999


def test_masks_are_exact(golden: GoldenCase) -> None:
    masking = random_masking(golden.tensors["noise"], golden.config.num_kept)
    assert torch.equal(masking.mask, golden.tensors["mask"])
    assert torch.equal(masking.kept, golden.tensors["ids_restore"].argsort(1)[:, : golden.config.num_kept])


def test_latents_and_predictions(golden: GoldenCase) -> None:
    model = golden.model()
    latents: list[Tensor] = []
    for stage in model.stages:
        stage.norm.register_forward_hook(lambda _module, _inputs, latent: latents.append(latent))
    shown = model.reconstruct(golden.tensors["image_u8"], golden.tensors["noise"])
    for stage, recorded in enumerate(golden.by_stage("latent")):
        assert_close(latents[stage], recorded, f"latent {stage}")
    for stage, recorded in enumerate(golden.by_stage("pred")):
        assert_close(shown.stages[stage].prediction, recorded, f"prediction {stage}")


def test_losses(golden: GoldenCase) -> None:
    model = golden.model()
    with given_targets(model, golden):
        loss, stage_losses = model(golden.tensors["image_u8"], golden.tensors["noise"])
    assert_close(stage_losses, golden.tensors["losses"], "stage losses")
    assert_close(loss, golden.tensors["loss"], "loss")


def test_losses_count_masked_cells_only(golden: GoldenCase) -> None:
    """The recorded predictions, targets and masks give the recorded losses by the written formula."""
    for stage, scale in enumerate(golden.config.stage_scales):
        weight = mask_at_scale(golden.tensors["mask"], scale).double()
        error = (golden.by_stage("pred")[stage] - golden.by_stage("target")[stage]).double().square().mean(2)
        assert_close((error * weight).sum() / weight.sum(), golden.tensors["losses"][stage], f"loss {stage}")


def test_every_gradient(golden: GoldenCase) -> None:
    recorded = golden.gradients()
    ours = LocalMIM(golden.config)
    _, computed = gradients(golden.model(), golden)
    assert computed.keys() == dict(ours.named_parameters()).keys()
    for name, gradient in computed.items():
        assert_close(gradient, recorded.pop(_published_name(name, ours)), name)
    assert not recorded, f"recorded gradients without a parameter of ours: {sorted(recorded)}"


def test_frozen_prefix_leaves_the_gradients_of_the_live_units(golden: GoldenCase) -> None:
    """Bit for bit those of an unfrozen model that never had the dead stages."""
    for units in range(1, golden.config.num_units):
        frozen = golden.model()
        frozen.freeze_prefix(units)
        losses, ours = gradients(frozen, golden)
        live = frozen.live_stages
        expected_losses, expected = gradients(_with_stages(golden.model(), live), _only_stages(golden, live))
        assert torch.equal(losses, expected_losses)
        assert ours.keys() == {name for name, _ in frozen.named_parameters() if frozen.unit_of(name) >= units}
        for name, gradient in ours.items():
            assert torch.equal(gradient, expected[_renumbered(name, live)]), f"{name} with {units} units frozen"


def _published_name(name: str, model: LocalMIM) -> str:
    """Written apart from the importer, so that the two check each other."""
    parts = name.split(".")
    if parts[0] != "stages":
        return name
    stage, part, rest = parts[1], parts[2], parts[3:]
    if part == "norm":
        return ".".join(["norm", stage, *rest])
    if rest[0] == "resize":
        rest[0] = "pred"
    elif rest[0] == "predict":
        head = {4: "4", 2: "1", 1: "0", 0.5: "1"}[model.config.stage_scales[int(stage)]]
        rest[:1] = ["pred", head]
    return ".".join(["decoder", stage, *rest])


def _renumbered(name: str, live: list[int]) -> str:
    parts = name.split(".")
    if parts[0] == "stages":
        parts[1] = str(live.index(int(parts[1])))
    return ".".join(parts)


def _with_stages(model: LocalMIM, live: list[int]) -> LocalMIM:
    """The same weights in a model that has these stages only."""
    config = model.config.model_copy(
        update={
            "stages": [model.config.stage_blocks[stage] for stage in live],
            "scales": [model.config.stage_scales[stage] for stage in live],
        }
    )
    reduced = LocalMIM(config)
    gone = tuple(f"stages.{stage}." for stage in range(len(model.stages)) if stage not in live)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(gone)}
    reduced.load_state_dict({_renumbered(name, live): tensor for name, tensor in weights.items()})
    return reduced


def _only_stages(golden: GoldenCase, live: list[int]) -> GoldenCase:
    targets = {f"target.{index}": golden.tensors[f"target.{stage}"] for index, stage in enumerate(live)}
    config = golden.config.model_copy(
        update={
            "stages": [golden.config.stage_blocks[stage] for stage in live],
            "scales": [golden.config.stage_scales[stage] for stage in live],
        }
    )
    inputs = {name: golden.tensors[name] for name in ("image_u8", "noise")}
    return GoldenCase(config, inputs | targets)
