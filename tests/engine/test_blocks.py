"""Compiled and checkpointed blocks on the engine: through every freeze, the same training at every ZeRO stage."""

import numpy as np
import pytest

from tests.distributed import RankPool
from tests.engine import block_case
from tests.engine.block_case import Outcome
from tests.engine.cases import Setting


def assert_same_bits(found: list[Outcome], expected: list[Outcome]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.losses == theirs.losses
        for name, weight in theirs.weights.items():
            np.testing.assert_array_equal(ours.weights[name], weight, err_msg=name)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(1, "fp32"),
        pytest.param(Setting(3, "fp32"), marks=pytest.mark.exhaustive),
        pytest.param(Setting(0, "bf16"), marks=pytest.mark.exhaustive),
        pytest.param(Setting(2, "bf16", clip=0.5), marks=pytest.mark.slow),
        pytest.param(Setting(3, "bf16"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_checkpointed_activations_change_no_bit(two_ranks: RankPool, setting: Setting) -> None:
    plain = two_ranks.run(block_case.train, setting)
    checkpointed = two_ranks.run(block_case.train_checkpointed, setting)
    assert_same_bits(checkpointed, plain)
    for ours, theirs in zip(checkpointed, plain, strict=True):
        # ZeRO-3 gathers a block once more to run it again, unless it was still there; others gather nothing for it.
        extra = [a - b for a, b in zip(ours.gathered, theirs.gathered, strict=True)]
        assert all(elements >= 0 for elements in extra)
        assert (sum(extra) > 0) == (setting.stage == 3)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(Setting(0, "bf16"), marks=pytest.mark.exhaustive),
        pytest.param(Setting(1, "fp32"), marks=pytest.mark.exhaustive),
        pytest.param(Setting(2, "bf16", clip=0.5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_blocks_change_no_bit_and_compile_once(two_ranks: RankPool, setting: Setting) -> None:
    """With the backend that runs torch's own kernels, so that nothing but the wiring could differ."""
    plain = two_ranks.run(block_case.train, setting)
    for case in (block_case.train_compiled, block_case.train_compiled_and_checkpointed):
        compiled = two_ranks.run(case, setting, timeout=400)
        assert_same_bits(compiled, plain)
        assert all(outcome.graphs == [3] * (1 + block_case.STEPS) for outcome in compiled)


@pytest.mark.exhaustive
def test_the_real_compiler_trains_alike_through_every_freeze(two_ranks: RankPool) -> None:
    setting = Setting(2, "fp32")
    plain = two_ranks.run(block_case.train, setting)
    compiled = two_ranks.run(block_case.train_with_inductor, setting, timeout=500)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.graphs == [3] * (1 + block_case.STEPS)
        # Sums in another order; Adam makes steps of full size of last bits where a gradient is near zero.
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=2e-4)
