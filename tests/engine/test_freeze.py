"""What a freeze gives back, what it leaves alone and when it is refused."""

import numpy as np
import pytest

from tests.distributed import RankPool
from tests.engine import freezes
from tests.engine.cases import Setting
from tests.engine.memory import expected_optimizer_bytes
from tests.engine.trajectory import build_cpu_adam

STAGES = (0, 1, 2, 3)
RANKS = 2


@pytest.mark.parametrize("stage", STAGES)
def test_elements_reduced_and_gathered_follow_the_trainable_count(two_ranks: RankPool, stage: int) -> None:
    for by_frozen_units in two_ranks.run(freezes.traffic_by_frozen_units, Setting(stage, "bf16")):
        assert [found["reduced"] for found in by_frozen_units] == [
            expected_traffic(stage, found["groups"], found["all_parameters"])[0] for found in by_frozen_units
        ]
        assert [found["gathered"] for found in by_frozen_units] == [
            expected_traffic(stage, found["groups"], found["all_parameters"])[1] for found in by_frozen_units
        ]


def expected_traffic(stage: int, groups: list[tuple[int, ...]], all_parameters: list[int]) -> tuple[int, int]:
    """(reduced, gathered) elements per step. ZeRO-3 gathers frozen weights too: the forward pass needs them."""
    trainable = sum(sum(sizes) for sizes in groups)
    if stage == 3:
        return padded([size for sizes in groups for size in sizes], RANKS), padded(all_parameters, RANKS)
    return trainable, padded([sum(sizes) for sizes in groups], 2 * RANKS) if stage else 0


def padded(sizes: list[int], multiple: int) -> int:
    return sum(-(-size // multiple) * multiple for size in sizes)


@pytest.mark.parametrize(
    ("setting", "freezes_made"),
    [
        (Setting(0, "fp32"), 3),
        (Setting(0, "bf16"), 12),
        (Setting(1, "fp32"), 3),
        (Setting(1, "bf16"), 12),
        (Setting(2, "bf16"), 12),
        (Setting(3, "fp32"), 3),
        (Setting(3, "bf16"), 12),
    ],
    ids=str,
)
def test_every_freed_byte_is_accounted_for_and_nothing_leaks(
    two_ranks: RankPool, setting: Setting, freezes_made: int
) -> None:
    for by_freeze in two_ranks.run(freezes.many_freezes, setting, freezes_made):
        assert len(by_freeze) == freezes_made
        for found in by_freeze:
            assert found["leaked_wrappers"] == 0
            assert found["optimizer_bytes_freed"] == expected_optimizer_bytes(
                found["frozen_groups"], zero_stage=setting.stage, world_size=RANKS
            )
            assert found["live_bytes_freed"] == expected_live_bytes(setting, found["frozen_groups"])


def expected_live_bytes(setting: Setting, groups: list[tuple[int, ...]]) -> int:
    """What leaves memory besides masters and moments: step counts, and at stage 3 the gradient shards."""
    optimizer = expected_optimizer_bytes(groups, zero_stage=setting.stage, world_size=RANKS)
    weight_bytes = 4 if setting.precision == "fp32" else 2
    total = sum(sum(sizes) for sizes in groups)
    if setting.stage == 0:
        steps = 4 * sum(len(sizes) for sizes in groups)
        return (
            optimizer + steps - (4 * total if setting.precision == "fp32" else 0)
        )  # there the masters are the weights
    if setting.stage == 3:
        return optimizer + 4 * len(groups) + weight_bytes * optimizer // 12
    return optimizer + 4 * len(groups)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (1, "bf16"), (1, "fp16"), (2, "fp32"), (2, "fp16"), (3, "bf16"), (3, "fp16")],
)
def test_rebuilding_the_optimizer_changes_no_bit(two_ranks: RankPool, stage: int, precision: str) -> None:
    setting = Setting(stage, precision, clip=0.5)
    assert two_ranks.run(freezes.rebuilding_changes_nothing, setting) == [True, True]


@pytest.mark.slow  # as all that need DeepSpeedCPUAdam, which a fresh machine compiles for minutes
@pytest.mark.parametrize("stage", [1, 3])
def test_rebuilding_an_offloaded_optimizer_changes_no_bit(two_ranks: RankPool, stage: int) -> None:
    two_ranks.run(build_cpu_adam, timeout=500)
    setting = Setting(stage, "bf16", clip=0.5, offload=True)
    assert two_ranks.run(freezes.rebuilding_changes_nothing, setting) == [True, True]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_wrong_freezes_are_refused_and_do_no_harm(two_ranks: RankPool, stage: int) -> None:
    for messages in two_ranks.run(freezes.refusals, Setting(stage, "fp32", accumulation=2)):
        for moment in ("before step()", "between micro-batches"):
            assert messages[moment].startswith("RuntimeError: freeze() in the middle of a gradient accumulation")
        assert messages["ranks disagree"] == "RuntimeError: the ranks want to freeze different numbers of units: [1, 2]"
        assert messages["everything"] == "ValueError: freezing 5 of 5 units would leave nothing to train"
        assert messages["nothing"] == "ValueError: 2 units are frozen already, asked for 2"
        assert messages["no rate"] == "ValueError: unit 2 still trains and needs a learning rate"


@pytest.mark.parametrize("stage", STAGES)
def test_freezing_before_the_first_step_equals_building_frozen(two_ranks: RankPool, stage: int) -> None:
    setting = Setting(stage, "bf16")
    frozen_early = two_ranks.run(freezes.freeze_before_the_first_step, setting)
    built_frozen = two_ranks.run(freezes.built_frozen, setting)
    for (kept, weights), (expected_kept, expected_weights) in zip(frozen_early, built_frozen, strict=True):
        assert kept == expected_kept
        for name in expected_weights:
            np.testing.assert_array_equal(weights[name], expected_weights[name])
