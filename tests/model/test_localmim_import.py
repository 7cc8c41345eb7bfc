"""Checkpoints under LocalMIM's names load whole or are refused by key."""

import pytest
import torch

from tests.model.golden import GoldenCase
from trainer.errors import BadInput
from trainer.export import load_localmim_state_dict
from trainer.model.localmim import LocalMIM


def test_every_weight_is_loaded(golden: GoldenCase) -> None:
    model = LocalMIM(golden.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    load_localmim_state_dict(model, golden.state_dict())
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("blocks.0.attn.qkv.weight", "the checkpoint lacks blocks.0.attn.qkv.weight"),
        ("decoder.3.pred.1.bias", "the checkpoint lacks decoder.3.pred.1.bias"),
    ],
)
def test_missing_weight_is_named_and_nothing_is_copied(golden: GoldenCase, key: str, problem: str) -> None:
    model = LocalMIM(golden.config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = golden.state_dict()
    del weights[key]
    with pytest.raises(BadInput, match=problem):
        load_localmim_state_dict(model, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_unexpected_weight_is_named(golden: GoldenCase) -> None:
    with pytest.raises(BadInput, match=r"no place for: head\.weight"):
        load_localmim_state_dict(LocalMIM(golden.config), golden.state_dict() | {"head.weight": torch.zeros(1)})


def test_wrong_shape_is_named(golden: GoldenCase) -> None:
    weights = golden.state_dict() | {"cls_token": torch.zeros(1, 1, 5)}
    with pytest.raises(BadInput, match=r"cls_token \(1, 1, 5\) instead of"):
        load_localmim_state_dict(LocalMIM(golden.config), weights)


def test_learned_positions_are_refused(golden: GoldenCase) -> None:
    weights = golden.state_dict()
    weights["pos_embed"] = weights["pos_embed"] + 0.01
    with pytest.raises(BadInput, match="other positions than fixed sin-cos: pos_embed"):
        load_localmim_state_dict(LocalMIM(golden.config), weights)
