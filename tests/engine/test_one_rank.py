"""On one rank ZeRO-1 and 2 update from gradients where they lie: the same bits as by way of DeepSpeed's buckets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.distributed import RankPool
from tests.engine.cases import WEIGHT_DECAY, Setting, close, new_model, resolved_config, train_step, weights
from tests.engine.trajectory import build_cpu_adam
from trainer.engine import internals
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine
from trainer.engine.internals import rebuild

IN_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
"""There, and with an offloaded optimizer, the reduction itself moves gradients to where they are updated from."""
OFFLOADED = [Setting(stage, "bf16", clip=0.5, accumulation=2, offload=True) for stage in (1, 2)]
CASES: list[Any] = [
    (Setting(1, "bf16", clip=0.5, accumulation=2), {}, {}),
    (Setting(2, "fp32", clip=0.5, accumulation=2), {}, {}),
    (Setting(2, "bf16", accumulation=2), {"overlap_comm": True}, {}),
    (Setting(1, "fp32"), {"overlap_comm": True}, {}),
    (Setting(2, "fp32"), {"contiguous_gradients": False, "reduce_scatter": False}, {}),
    (Setting(2, "bf16"), {}, {"communication_data_type": "fp32"}),
    (Setting(2, "bf16", accumulation=2), {}, IN_FP32),
    *(pytest.param(setting, {}, {}, marks=pytest.mark.slow) for setting in OFFLOADED),
]
"""Setting, keys of ``zero_optimization``, other keys."""


@contextmanager
def deepspeeds_own_way() -> Iterator[None]:
    with (
        patch.object(internals, "leave_gradients_of_one_rank", lambda engine: None),
        patch.object(rebuild, "leave_gradients_of_one_rank", lambda engine: None),
    ):
        yield


def trained(setting: Setting, zero: dict[str, Any], more: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights after two updates, a freeze and two more."""
    resolved = resolved_config(setting, **zero)
    resolved = replace(resolved, config=resolved.config | more)
    engine = FreezingEngine(new_model(), resolved, OptimizerConfig(weight_decay=WEIGHT_DECAY, clip_grad=setting.clip))
    for step in range(4):
        if step == 2:
            engine.freeze(1)
        train_step(engine, step)
    final = weights(engine)
    close(engine)
    return final


def differences(setting: Setting, zero: dict[str, Any], more: dict[str, Any]) -> tuple[list[str], int]:
    """The weights that differ from those by way of the buckets, and how many have moved. Runs on a rank."""
    if setting.offload:
        build_cpu_adam()
    ours = trained(setting, zero, more)
    with deepspeeds_own_way():
        theirs = trained(setting, zero, more)
    initial = {name: parameter.to(ours[name].dtype) for name, parameter in new_model().named_parameters()}
    moved = sum(not torch.equal(weight, initial[name]) for name, weight in ours.items())
    return [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])], moved


@pytest.mark.parametrize(("setting", "zero", "more"), CASES, ids=str)
def test_no_bit_is_changed(one_rank: RankPool, setting: Setting, zero: dict[str, Any], more: dict[str, Any]) -> None:
    ((differing, moved),) = one_rank.run(differences, setting, zero, more, timeout=500)
    assert differing == []
    assert moved > 20
