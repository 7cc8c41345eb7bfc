"""Layer decay, warm-up and cosine, as formulas; and which parameter belongs to which unit."""

import math

import pytest
import timm
import torch

from trainer.errors import BadInput
from trainer.finetuning.classifier import HEAD_STD, Classifier
from trainer.finetuning.recipe import FinetuneConfig
from trainer.finetuning.schedule import LayerDecaySchedule
from trainer.model.config import EncoderConfig

SCHEDULE = LayerDecaySchedule(depth=12, layer_decay=0.75, total_steps=100, warmup_steps=20, lr=4e-3, min_lr=1e-6)


@pytest.mark.parametrize(
    ("step", "head"),
    [
        (0, 0.0),
        (5, 1e-3),
        (20, 4e-3),
        (60, 1e-6 + (4e-3 - 1e-6) / 2),
        (99, 1e-6 + (4e-3 - 1e-6) * (1 + math.cos(math.pi * 79 / 80)) / 2),
    ],
)
def test_each_unit_has_three_quarters_of_the_rate_of_the_one_above(step: int, head: float) -> None:
    rates = SCHEDULE.learning_rates(step)
    assert len(rates) == 14
    assert rates == pytest.approx([head * 0.75 ** (13 - unit) for unit in range(14)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"warmup_steps": 100}, "optimizer.warmup_epochs"), ({"min_lr": 1.0}, "optimizer.min_lr 1: .*between 0 and")],
)
def test_a_schedule_without_sense_names_the_key(changes: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        LayerDecaySchedule(**(SCHEDULE.__dict__ | changes))


def test_embeddings_blocks_and_head_are_units_and_the_weights_have_timms_names() -> None:
    ours = Classifier(EncoderConfig(size="tiny"), FinetuneConfig(drop_path=0.1), classes=7)
    units = {name: ours.unit_of(name) for name, _ in ours.named_parameters()}
    assert {units[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0}
    assert units["blocks.0.norm1.weight"] == 1
    assert units["blocks.11.mlp.fc2.bias"] == 12
    assert {units[name] for name in ("fc_norm.weight", "head.weight", "head.bias")} == {13}
    assert ours.num_units == 14
    assert float(ours.head.weight.std()) == pytest.approx(HEAD_STD, rel=0.1)
    assert [round(block.drop_path1.drop_prob, 4) for block in ours.blocks[1:]] == [
        round(0.1 * i / 11, 4) for i in range(1, 12)
    ]

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7, global_pool="avg")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)


def test_a_class_token_head_keeps_the_encoders_norm() -> None:
    model = Classifier(EncoderConfig(size="tiny"), FinetuneConfig(pooling="token"), classes=7)
    assert model.unit_of("norm.weight") == 13
    assert "fc_norm.weight" not in dict(model.named_parameters())
