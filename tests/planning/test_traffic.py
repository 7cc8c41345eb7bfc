"""The plan's traffic equals what real ranks send, element for element and byte for byte."""

from itertools import pairwise, product
from typing import Any

import pytest

from tests.covering import slow_and_exhaustive
from tests.distributed import RankPool
from tests.engine.cases import Setting
from tests.planning import counted_steps
from tests.planning.counted_steps import Pair
from trainer.engine.ds_config import resolve_ds_config
from trainer.model.config import ModelConfig
from trainer.planning.parameter_use import planned_use
from trainer.planning.traffic import StepTraffic, step_traffic

MATRIX = [
    Setting(stage, precision, accumulation=accumulation)
    for stage, precision, accumulation in product(range(4), ("fp32", "bf16"), (1, 2))
]
FAST = [Setting(0, "bf16", accumulation=2), Setting(1, "fp32", accumulation=2), Setting(2, "bf16", accumulation=2)]
UNUSUAL_KEYS: list[tuple[int, dict[str, Any]]] = [
    (1, {"use_multi_rank_bucket_allreduce": False}),
    (2, {"reduce_scatter": False}),
    (3, {"reduce_scatter": False}),
    (3, {"stage3_param_persistence_threshold": 100}),
    (3, {"stage3_param_persistence_threshold": 60, "stage3_model_persistence_threshold": 200}),
    (3, {"stage3_max_reuse_distance": 12_000, "stage3_prefetch_bucket_size": 0}),
    (3, {"stage3_max_reuse_distance": 3000, "stage3_prefetch_bucket_size": 1000}),
    (3, {"stage3_max_reuse_distance": 3000, "stage3_max_live_parameters": 3000}),
]
RELEASING = {
    "stage3_param_persistence_threshold": 60,
    "stage3_prefetch_bucket_size": 300,
    "stage3_max_reuse_distance": 3000,
}
"""ZeRO-3 as it behaves on a model too large to stay whole: small parameters stay, others are gathered again."""


def assert_planned_as_counted(by_rank: list[list[Pair]]) -> None:
    for by_frozen_units in by_rank:
        assert [planned for _, planned in by_frozen_units] == [counted for counted, _ in by_frozen_units]


@pytest.mark.parametrize("setting", FAST, ids=str)
def test_planned_traffic_equals_what_two_ranks_send(two_ranks: RankPool, setting: Setting) -> None:
    assert_planned_as_counted(two_ranks.run(counted_steps.small_vit_steps, setting, {}))


@pytest.mark.parametrize("setting", [Setting(1, "fp32", accumulation=2), Setting(2, "bf16")], ids=str)
def test_one_rank_is_seen_to_send_nothing_through_all_freezes(one_rank: RankPool, setting: Setting) -> None:
    assert_planned_as_counted(one_rank.run(counted_steps.small_vit_steps, setting, {}))


@pytest.mark.parametrize("stage", [2, 3])
def test_planned_traffic_of_the_real_model_equals_what_two_ranks_send(two_ranks: RankPool, stage: int) -> None:
    keys = RELEASING if stage == 3 else {}
    assert_planned_as_counted(two_ranks.run(counted_steps.localmim_steps, Setting(stage, "fp32"), keys))


@pytest.mark.slow
@pytest.mark.parametrize("reuse_distance", [0, 3000, 1_000_000_000])
def test_activation_checkpointing_is_planned_for(two_ranks: RankPool, reuse_distance: int) -> None:
    keys = RELEASING | {"stage3_max_reuse_distance": reuse_distance}
    assert_planned_as_counted(two_ranks.run(counted_steps.localmim_steps, Setting(3, "fp32"), keys, True, timeout=300))


@pytest.mark.parametrize(
    "setting", slow_and_exhaustive(MATRIX, lambda setting: [setting.stage, setting.precision, (setting.accumulation,)])
)
def test_planned_traffic_equals_what_four_ranks_send(four_ranks: RankPool, setting: Setting) -> None:
    assert_planned_as_counted(four_ranks.run(counted_steps.small_vit_steps, setting, {}, timeout=300))


@pytest.mark.exhaustive
@pytest.mark.parametrize("setting", MATRIX, ids=str)
def test_planned_traffic_equals_what_two_ranks_send_in_the_whole_matrix(two_ranks: RankPool, setting: Setting) -> None:
    assert_planned_as_counted(two_ranks.run(counted_steps.small_vit_steps, setting, {}, timeout=300))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "keys"), UNUSUAL_KEYS, ids=str)
def test_keys_that_change_what_is_sent_are_planned_for(two_ranks: RankPool, stage: int, keys: dict[str, Any]) -> None:
    setting = Setting(stage, "bf16", accumulation=2)
    assert_planned_as_counted(two_ranks.run(counted_steps.small_vit_steps, setting, keys, timeout=300))


def vit_base_traffic(stage: int, world_size: int, frozen_units: int = 0, **keys: Any) -> StepTraffic:
    resolved = resolve_ds_config(
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}, **keys},
        source="test", world_size=world_size, global_batch=64 * world_size, micro_batch=64, precision=None, clip_grad=0,
    )  # fmt: skip
    return step_traffic(planned_use(ModelConfig(), frozen_units), resolved, world_size)


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_sends_nothing(stage: int) -> None:
    assert vit_base_traffic(stage, 1) == StepTraffic()


def test_gradients_travel_in_the_communication_data_type() -> None:
    assert (
        vit_base_traffic(2, 8, communication_data_type="fp32").reduced_bytes == 2 * vit_base_traffic(2, 8).reduced_bytes
    )


@pytest.mark.parametrize("stage", range(4))
def test_every_freeze_lowers_the_traffic(stage: int) -> None:
    sent = [vit_base_traffic(stage, 8, frozen_units).sent_bytes for frozen_units in range(13)]
    assert all(after < before for before, after in pairwise(sent))


def test_a_small_model_is_gathered_once_and_a_large_one_twice_where_it_does_not_stay() -> None:
    large = ModelConfig(size="huge", embed_dim=1792, depth=52, num_heads=16)
    resolved = resolve_ds_config(
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}},
        source="test", world_size=8, global_batch=64, micro_batch=8, precision=None, clip_grad=0,
    )  # fmt: skip
    for config, twice in ((ModelConfig(), False), (large, True)):
        use = planned_use(config, 0)
        gathered = step_traffic(use, resolved, 8).gathered_elements
        assert (gathered > 1.4 * sum(use.sizes.values())) == twice
        assert (gathered < 1.01 * sum(use.sizes.values())) == (not twice)
