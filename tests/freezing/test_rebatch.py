"""Which micro-batch each phase gets: the largest that the budget allows, and never a larger one."""

from itertools import pairwise, product
from typing import Any

import pytest

from trainer.data.micro_batches import MicroBatches
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput
from trainer.freezing.config import FreezingConfig
from trainer.freezing.rebatch import describe_rebatching, micro_batch_by_frozen_units, micro_batches_of_run
from trainer.freezing.schedule import FreezeSchedule
from trainer.model.config import ModelConfig
from trainer.planning.memory import step_memory

MODEL = ModelConfig(
    size="tiny", image_size=64, patch_size=16, embed_dim=48, depth=6, num_heads=3,
    stages=[0, 2, 3, 5], decoder_dim=32, decoder_heads=2,
)  # fmt: skip


def resolved(stage: int, precision: Any, world_size: int, global_batch: int, micro_batch: int) -> ResolvedDsConfig:
    raw: dict[str, Any] = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}}
    if precision == "bf16":
        raw["bf16"] = {"enabled": True}
    return resolve_ds_config(
        raw, source="test", world_size=world_size, global_batch=global_batch, micro_batch=micro_batch, precision=None,
        clip_grad=0.0,
    )  # fmt: skip


LAYOUTS = [
    (resolved(stage, precision, world_size, global_batch, micro_batch), world_size)
    for stage, precision in product((0, 1, 2, 3), ("fp32", "bf16"))
    for world_size, global_batch, micro_batch in ((1, 8, 1), (2, 48, 3), (8, 2048, 16), (16, 240, 5))
]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("room", [None, 1.3, 4.0])
def test_every_phase_gets_the_largest_micro_batch_within_the_budget(room: float | None, checkpoint_activations) -> None:
    """`room`: budget ÷ what the first phase needs; None: left empty."""
    grown = 0
    for ds, world_size in LAYOUTS:

        def needed(frozen_units: int, size: int, ds=ds, world_size=world_size) -> int:
            options = {"checkpoint_activations": checkpoint_activations}
            return step_memory(MODEL, ds, world_size, frozen_units, size, **options).total

        budget = round((room or 1) * needed(0, ds.micro_batch))
        chosen = micro_batch_by_frozen_units(
            MODEL, ds, world_size, None if room is None else budget, checkpoint_activations=checkpoint_activations
        )
        share = ds.micro_batch * ds.accumulation
        assert len(chosen) == MODEL.num_blocks + 1
        assert chosen[0] == ds.micro_batch
        for frozen_units, size in enumerate(chosen):
            assert share % size == 0
            assert needed(frozen_units, size) <= budget
            larger = [other for other in range(size + 1, share + 1) if share % other == 0]
            assert not frozen_units or not [s for s in larger if needed(frozen_units, s) <= budget]
        assert all(before <= after for before, after in pairwise(chosen))
        grown += chosen[-1] > chosen[0]
    assert grown >= len(LAYOUTS) // 2  # the others are near their first phase's peak until the end


def test_a_budget_that_the_first_phase_exceeds_is_refused_with_what_it_needs() -> None:
    ds = resolved(2, "bf16", 2, 48, 3)
    needed = step_memory(MODEL, ds, 2, 0, 3).total
    assert 1_000_000 < needed < 99_950_000
    with pytest.raises(BadInput) as refused:
        micro_batch_by_frozen_units(MODEL, ds, 2, needed - 1)
    assert str(refused.value) == (
        f"freezing.memory_budget {needed / 1e6:.3g} MB: micro-batch 3 needs {needed / 1e6:.3g} MB per rank before the "
        "first freeze, by the memory model; raise the budget or lower train.micro_batch"
    )


def schedule(how: Any = "linear", total_steps: int = 61) -> FreezeSchedule:
    config = FreezingConfig(how=how, t0=0.4)
    return FreezeSchedule(config, depth=6, total_steps=total_steps, warmup_steps=1, lr=1e-3, min_lr=0.0)


def test_the_sizes_change_at_the_freezes_that_allow_it() -> None:
    freezes = schedule().freeze_steps()
    assert freezes == [26, 32, 38, 44, 50, 56, None]
    sizes = micro_batches_of_run((2, 2, 4, 4, 8, 8, 8), schedule())
    assert sizes == MicroBatches(((0, 2), (32, 4), (44, 8)))
    assert [sizes.at(step) for step in (0, 31, 32, 43, 44, 60)] == [2, 2, 4, 4, 8, 8]


def test_units_that_freeze_at_one_step_change_the_size_once() -> None:
    crowded = schedule(total_steps=5)
    assert crowded.freeze_steps() == [3, 4, 4, 4, None, None, None]
    assert micro_batches_of_run((2, 2, 4, 6, 8, 8, 8), crowded) == MicroBatches(((0, 2), (4, 8)))


def test_nothing_changes_where_nothing_freezes() -> None:
    assert micro_batches_of_run((2, 4, 4, 4, 8, 8, 8), schedule("none")) == MicroBatches.always(2)


def test_a_run_is_told_what_it_gains_or_why_nothing() -> None:
    ds = resolved(2, "fp32", 2, 64, 4)
    assert describe_rebatching(MicroBatches(((0, 4), (32, 8), (44, 32))), ds) == (
        "re-batching: micro-batch 4 x 8, 8 x 4 after step 32, 32 x 1 after step 44"
    )
    assert describe_rebatching(MicroBatches.always(4), ds) == (
        "re-batching: nothing to gain, no freeze frees enough for a micro-batch above 4"
    )
    assert describe_rebatching(MicroBatches.always(32), resolved(2, "fp32", 2, 64, 32)) == (
        "re-batching: nothing to gain, a step is a single micro-batch already"
    )
