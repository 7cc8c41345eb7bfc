"""Groups never mix units or weight decays, and nothing trainable is left out."""

import torch

from tests.engine.memory import expected_optimizer_bytes
from tests.engine.small_vit import SmallViT
from trainer.engine.groups import parameter_groups


class ExemptingViT(SmallViT):
    def no_weight_decay(self) -> set[str]:
        return {"embedding.cls_token"}


def test_every_trainable_parameter_is_in_one_group_of_its_unit_and_decay() -> None:
    model = SmallViT()
    groups = parameter_groups(model)
    named = [(name, group) for group in groups for name in group.parameter_names]
    assert sorted(name for name, _ in named) == sorted(name for name, _ in model.named_parameters())
    for name, group in named:
        assert group.unit == model.unit_of(name)
        assert group.decayed == (not name.endswith(".bias") and "norm" not in name)
    assert [(group.unit, group.decayed) for group in groups] == [(u, d) for u in range(5) for d in (True, False)]


def test_parameters_frozen_before_the_engine_is_built_get_no_group() -> None:
    model = SmallViT()
    model.freeze_prefix(3)
    assert {group.unit for group in parameter_groups(model)} == {3, 4}


def test_a_model_can_exempt_tokens_from_weight_decay() -> None:
    def decayed(model: SmallViT) -> bool:
        return next(g.decayed for g in parameter_groups(model) if "embedding.cls_token" in g.parameter_names)

    assert decayed(SmallViT())
    assert not decayed(ExemptingViT())


def test_expected_bytes_are_twelve_per_parameter_divided_by_the_ranks_and_padded() -> None:
    groups = [(10, 3), (5,)]
    assert expected_optimizer_bytes(groups, zero_stage=0, world_size=2) == 18 * 12
    assert expected_optimizer_bytes(groups, zero_stage=1, world_size=2) == (16 + 8) // 2 * 12
    assert expected_optimizer_bytes(groups, zero_stage=2, world_size=4) == (16 + 8) // 4 * 12
    assert expected_optimizer_bytes(groups, zero_stage=3, world_size=2) == (5 + 2 + 3) * 12
    assert expected_optimizer_bytes(groups, zero_stage=3, world_size=2, moments=False) == (5 + 2 + 3) * 4


def test_groups_keep_the_order_of_the_model() -> None:
    torch.manual_seed(0)
    order = {name: position for position, (name, _) in enumerate(SmallViT().named_parameters())}
    for group in parameter_groups(SmallViT()):
        positions = [order[name] for name in group.parameter_names]
        assert positions == sorted(positions)
