"""Checkpoints under LocalMIM's names load whole or are refused by key, and are written back as they came."""

import pytest
import torch

from tests.model.golden import GoldenCase
from trainer.errors import BadInput
from trainer.pretrained.localmim_names import to_published
from trainer.pretrained.recognise import recognise
from trainer.pretrained.weights import Pretrained


def load(golden: GoldenCase, weights: dict[str, torch.Tensor]) -> Pretrained:
    return recognise(weights, {}, "x.pth", like=golden.config)


def test_every_weight_is_loaded(golden: GoldenCase) -> None:
    pretrained = load(golden, golden.state_dict())
    assert pretrained.config.model_dump() | {"stages": golden.config.stages} == golden.config.model_dump()
    assert pretrained.config.stage_blocks == golden.config.stage_blocks
    recorded = golden.state_dict()
    assert torch.equal(pretrained.encoder["norm.weight"], recorded["norm.3.weight"])
    assert torch.equal(pretrained.encoder["norm.bias"], recorded["norm.3.bias"])
    assert pretrained.full is not None
    assert torch.equal(pretrained.full["stages.0.decoder.predict.bias"], recorded["decoder.0.pred.4.bias"])


def test_written_back_it_is_what_it_was(golden: GoldenCase) -> None:
    """Names, and values up to the rounding of the positions; the constant Sobel kernels are left out."""
    pretrained = load(golden, golden.state_dict())
    assert pretrained.full is not None
    written = to_published(pretrained.config, pretrained.full)
    recorded = {name: tensor for name, tensor in golden.state_dict().items() if not name.startswith("hog_enc.")}
    assert written.keys() == recorded.keys()
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, recorded[name], rtol=0, atol=1e-5 if "pos_embed" in name else 0)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("blocks.0.attn.qkv.weight", r"x\.pth: it lacks blocks.0.attn.qkv.weight"),
        ("decoder.3.pred.1.bias", "it lacks decoder.3.pred.1.bias"),
        ("decoder.0.embed.bias", "it lacks decoder.0.embed.bias"),
        ("norm.1.weight", "it lacks norm.1.weight"),
        ("decoder.0.pred.3.weight", r"decoder.0.pred has weights in its layers \[0, 1, 4\]"),
        ("patch_embed.proj.weight", "unknown architecture"),
    ],
)
def test_missing_weight_is_named(golden: GoldenCase, key: str, problem: str) -> None:
    weights = golden.state_dict()
    del weights[key]
    with pytest.raises(BadInput, match=problem):
        load(golden, weights)


def test_unexpected_weight_is_named(golden: GoldenCase) -> None:
    with pytest.raises(BadInput, match=r"no place for: head\.weight"):
        load(golden, golden.state_dict() | {"head.weight": torch.zeros(1)})


def test_wrong_shape_is_named(golden: GoldenCase) -> None:
    with pytest.raises(BadInput, match=r"cls_token \[1, 1, 5\] instead of"):
        load(golden, golden.state_dict() | {"cls_token": torch.zeros(1, 1, 5)})


@pytest.mark.parametrize("key", ["pos_embed", "decoder.2.pos_embed"])
def test_learned_positions_are_refused(golden: GoldenCase, key: str) -> None:
    weights = golden.state_dict()
    weights[key] = weights[key] + 0.01
    with pytest.raises(BadInput, match=f"other positions than fixed sin-cos: {key}"):
        load(golden, weights)


def test_unusual_models_are_not_guessed(golden: GoldenCase) -> None:
    with pytest.raises(BadInput, match="do not say how many attention heads"):
        recognise(golden.state_dict(), {}, "x.pth")
