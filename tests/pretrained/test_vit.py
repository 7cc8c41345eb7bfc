"""timm's ViT around the weights computes what our own encoder computes, with every pooling; what does not fit is
refused."""

import pytest
import torch

from tests.pretrained.models import MODEL, scrambled, unmasked_features
from trainer.errors import BadInput
from trainer.model.localmim import LocalMIM
from trainer.pretrained import Pretrained, build_vit, load_into
from trainer.pretrained.weights import from_localmim

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def model() -> LocalMIM:
    return scrambled(MODEL)


@pytest.fixture(scope="module")
def pretrained(model: LocalMIM) -> Pretrained:
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return from_localmim(MODEL, weights, "the model", {})


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, MODEL.image_size, MODEL.image_size, generator=torch.Generator().manual_seed(1))


def test_the_same_tokens_as_our_encoder(model: LocalMIM, pretrained: Pretrained, pixels: torch.Tensor) -> None:
    vit = build_vit(MODEL, num_classes=0).eval()
    load_into(vit, pretrained)
    ours = unmasked_features(model, pixels)
    torch.testing.assert_close(vit.forward_features(pixels), ours, **TOLERANCE)
    torch.testing.assert_close(vit(pixels), ours[:, 0], **TOLERANCE)


def test_mean_pooling_leaves_norm_out_and_its_own_as_it_began(pretrained: Pretrained) -> None:
    vit = build_vit(MODEL, num_classes=10, global_pool="avg", drop_path_rate=0.1)
    head = vit.head.weight.clone()
    load_into(vit, pretrained)
    assert torch.equal(vit.head.weight, head)
    assert torch.equal(vit.fc_norm.weight, torch.ones(32))
    assert torch.equal(vit.get_parameter("blocks.3.mlp.fc2.weight"), pretrained.encoder["blocks.3.mlp.fc2.weight"])


def test_mean_pooling_of_normalised_tokens_keeps_the_norm(
    model: LocalMIM, pretrained: Pretrained, pixels: torch.Tensor
) -> None:
    vit = build_vit(MODEL, num_classes=0, global_pool="avg", fc_norm=False).eval()
    load_into(vit, pretrained)
    torch.testing.assert_close(vit(pixels), unmasked_features(model, pixels)[:, 1:].mean(1), **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"img_size": 32}, r"pos_embed \[1, 17, 32\] instead of \[1, 5, 32\]"),
        ({"depth": 5}, r"it lacks blocks\.4\."),
        ({"depth": 3}, r"no place for: blocks\.3\."),
        ({"class_token": False, "global_pool": "avg"}, "no place for: cls_token"),
        ({"init_values": 0.1}, r"it lacks blocks\.0\.ls1\.gamma"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_copied(options: dict, says: str, pretrained: Pretrained) -> None:
    vit = build_vit(MODEL, num_classes=0, **options)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(BadInput, match=says):
        load_into(vit, pretrained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
